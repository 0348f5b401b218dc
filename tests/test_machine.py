"""What is written beside every measured number."""

import json

import torch

from lengthwise.machine import machine, versions


def test_machine_and_versions_are_plain_and_true():
    found = json.loads(json.dumps({"machine": machine(), "versions": versions()}))
    assert found["machine"]["processor"]
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"].startswith("3.")
