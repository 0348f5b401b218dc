"""The experiment of linear Transformers, at a size that takes a moment."""

import pytest
import torch

from lengthwise.systems import linear_transformer
from lengthwise.systems.system import Run


def test_decoding_is_timed_after_each_prefix_and_the_threads_come_back():
    before = torch.get_num_threads()
    times = linear_transformer.decoding_times("linear_attention(heads=4)", prefixes=(8, 32), tokens=3)
    assert list(times) == [8, 32]
    assert min(times.values()) > 0
    assert torch.get_num_threads() == before


def test_the_experiment_reports_every_figure(monkeypatch):
    monkeypatch.setattr(linear_transformer, "PREFIXES", (8, 32))
    monkeypatch.setattr(linear_transformer, "STEPS", 1)
    monkeypatch.setattr(linear_transformer, "COPY_STEPS", 1)
    monkeypatch.setattr(
        linear_transformer, "decoding_times", lambda e: {8: 1.0, 32: 1.0 if e.startswith("linear") else 5.0}
    )
    told = []
    figures = list(linear_transformer.reproduce(Run(seeds=(0,), progress=lambda text, done: told.append(done))))
    assert [figure.holds for figure in figures if figure.holds is not None] == [True, True, True]
    assert told == sorted(told)


@pytest.mark.slow
def test_the_claim_holds_with_one_seed():
    losses = [linear_transformer.byte_loss(mixer, 0) for mixer in ("linear_attention", "attention")]
    assert losses[0] <= 1.05 * losses[1]
