"""The experiment's pieces, at sizes that take a moment."""

import pytest
import torch

from lengthwise.systems import recurrent_memory_transformer as rmt
from lengthwise.systems.experiments import parameters
from lengthwise.systems.system import Run


def test_symbols_stand_in_the_first_segment_and_prompts_in_the_fourth():
    example = rmt.TASK.batch(3, seed=1)
    first, *_, last = example.tokens.split(rmt.SEGMENT, 1)
    assert len(example.tokens.split(rmt.SEGMENT, 1)) == 4
    assert torch.equal(example.targets[:, -rmt.SEGMENT :], first)
    assert (last == rmt.TASK.vocab_size - 1).all()


@torch.no_grad()
@pytest.mark.parametrize(("name", "reaches"), [("memory", True), ("no memory", False), ("cache", False)])
def test_what_the_first_segment_can_change_in_the_last(name, reaches):
    torch.manual_seed(0)
    model = rmt.build(name).double()
    tokens = rmt.TASK.batch(1, seed=1).tokens
    other = tokens.clone()
    other[:, : rmt.SEGMENT] = (other[:, : rmt.SEGMENT] + 1) % 8
    change = (model(tokens)[0] - model(other)[0])[:, -rmt.SEGMENT :].abs().max()
    assert bool(change > 0) == reaches


def test_variants_differ_in_memory_and_positions_alone():
    sizes = {name: parameters(rmt.build(name)) for name in rmt.VARIANTS}
    assert sizes["memory"] == sizes["one segment"]
    assert sizes["memory"] - sizes["no memory"] == (rmt.MEMORY + 2 * rmt.MEMORY) * rmt.DIM
    memory = rmt.build("memory").stack.layers[0].memory
    assert memory.std().item() == pytest.approx(rmt.STD, rel=0.2)


def test_the_experiment_yields_every_figure(monkeypatch):
    found = {"memory": 0.95, "no memory": 0.13, "cache": 0.30, "one segment": 0.4}
    monkeypatch.setattr(rmt, "accuracy", lambda name, seed, on_step: found[name])
    figures = list(rmt.reproduce(Run(seeds=(0, 1, 2))))
    assert [figure.holds for figure in figures] == [True, True, False, True]
    assert figures[-1].measured == pytest.approx(0.4 / 0.95)


def test_a_step_of_each_is_taken():
    for name in rmt.VARIANTS:
        assert 0 <= rmt.accuracy(name, 10, steps=1) <= 1
