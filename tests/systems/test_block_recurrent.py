"""The experiment's pieces, at sizes that take a moment."""

import pytest
import torch

from lengthwise.systems import block_recurrent
from lengthwise.systems.experiments import parameters
from lengthwise.systems.system import Run


@torch.no_grad()
@pytest.mark.parametrize(("name", "reaches"), [("fixed", True), ("lstm", True), ("windows", False)])
def test_what_the_first_tokens_can_change_at_the_prompts(name, reaches):
    torch.manual_seed(0)
    model = block_recurrent.build(name).double()
    tokens = block_recurrent.TASK.batch(1, seed=1).tokens
    other = tokens.clone()
    other[:, :8] = (other[:, :8] + 1) % 8
    change = (model(tokens)[0] - model(other)[0])[:, -8:].abs().max()
    assert bool(change > 0) == reaches


def test_the_recurrent_model_is_about_as_large_as_one_with_a_layer_more():
    sizes = {name: parameters(block_recurrent.build(name)) for name in ("fixed", "windows")}
    assert sizes["fixed"] < 1.05 * sizes["windows"]


def test_sequences_grow_through_the_training(monkeypatch):
    lengths = []
    monkeypatch.setattr(block_recurrent, "BATCH", 1)
    monkeypatch.setattr(block_recurrent, "fit", lambda model, batches, **_: lengths.extend(e.tokens for e in batches))
    block_recurrent.train("fixed", 10, curriculum={3: 2, 6: 1, 12: 3})
    assert [tokens.shape[1] for tokens in lengths] == [48] * 2 + [96] + [192] * 3


def test_matrices_of_all_layers_begin_alike():
    torch.manual_seed(0)
    model = block_recurrent.build("fixed")
    for name, weight in model.stack.named_parameters():
        if weight.ndim == 2 and ("proj" in name or "up" in name):
            assert weight.std().item() * weight.shape[1] ** 0.5 == pytest.approx(1, rel=0.05), name


def test_the_time_of_a_step_is_measured(monkeypatch):
    for name, size in {"BATCH": 1, "TIMED": (1, 2, 3)}.items():
        monkeypatch.setattr(block_recurrent, name, size)
    figures = list(block_recurrent.step_times())
    assert [figure.holds is None for figure in figures] == [False, True]
    assert all(figure.measured > 0 for figure in figures)


def test_the_experiment_yields_every_figure(monkeypatch):
    found = {"fixed": 0.9, "lstm": 0.5, "windows": 0.13}
    jobs = []
    monkeypatch.setattr(block_recurrent, "accuracy", lambda name, seed, _: jobs.append((name, seed)) or found[name])
    monkeypatch.setattr(block_recurrent, "step_times", lambda: iter(()))
    figures = list(block_recurrent.reproduce(Run(seeds=(3, 4))))
    assert [figure.holds for figure in figures] == [True, None, True]
    assert jobs == [("fixed", 3), ("lstm", 3), ("windows", 3)]


def test_a_step_of_each_is_taken(monkeypatch):
    monkeypatch.setattr(block_recurrent, "BATCH", 2)
    for name in block_recurrent.VARIANTS:
        assert 0 <= block_recurrent.TASK.score(block_recurrent.train(name, 10, curriculum={3: 1}), examples=4) <= 1
