"""Two processes on this machine are one run: the same losses, and resumable."""

import json
import socket

import pytest

from lengthwise.models import load
from tests.training.runs import metrics, python, trainer

LAYERS = "attention(window=4) + swiglu + attention(window=4)"
"""Layers that share the table of their position, beside one that shares nothing."""

PROGRAM = """
import dataclasses, sys
from pathlib import Path
import torch
from lengthwise.models import LanguageModel
from lengthwise.training.distributed import join, shard
from lengthwise.training.loop import Trainer
from tests.training.runs import corpus, options

world = join("cpu")
out, layers = sys.argv[1:]

def trainer(folder, **changes):
    settings = options(folder, layers=layers, position="t5", carry_state=True, **changes)
    torch.manual_seed(settings.seed)
    model = LanguageModel(16, 16, layers, settings.position)
    shard(model, model.stack.layers, world)
    assert any(p.to_local().numel() < p.numel() for p in model.parameters())
    return Trainer(model, {"model": "LanguageModel", "config": model.config}, corpus(), corpus((120,)), settings, world)

Path(out, "two").mkdir(parents=True, exist_ok=True)
run = trainer(Path(out, "two"), accumulate=2)
stop = run.step
def step(rows):
    if run.progress.step == 3:
        raise InterruptedError
    return stop(rows)
run.step = step
try:
    run.fit()
except InterruptedError:
    pass
world.wait()
again = trainer(Path(out, "two"), accumulate=2)
again.go_on(Path(out, "two", "last").resolve())
assert again.progress.step == 2
assert again.fit()
world.leave()
"""


def test_two_processes_have_the_losses_of_one_and_go_on_from_sharded_checkpoints(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        python(
            PROGRAM, tmp_path, LAYERS, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    assert trainer(tmp_path / "one", layers=LAYERS, position="t5", carry_state=True).fit()
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [(r["kind"], r["step"]) for r in two] == [(r["kind"], r["step"]) for r in one]
    for a, b in zip(one, two, strict=True):
        value = "loss" if a["kind"] == "train" else "bits_per_byte"
        assert b[value] == pytest.approx(a[value], abs=1e-5)
    assert json.loads((tmp_path / "two" / "last" / "trainer.json").read_text())["processes"] == 2
    whole = dict(load(tmp_path / "one" / "last").named_parameters())
    for name, parameter in load(tmp_path / "two" / "last").named_parameters():
        assert parameter.detach() == pytest.approx(whole[name].detach(), abs=1e-4)
    files = [f.name for f in (tmp_path / "two" / "last").resolve().rglob("*") if f.is_file()]
    assert all(name.endswith((".safetensors", ".json")) for name in files)
