"""The experiment's pieces, at sizes that take a moment."""

import torch

from lengthwise.mixers.moving_average import DampedEMA
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems import tcnca
from lengthwise.systems.experiments import parameters
from lengthwise.systems.system import Run


@torch.no_grad()
def test_the_average_by_transforms_is_the_average():
    torch.manual_seed(0)
    average, x = DampedEMA(5, states=4), torch.randn(2, 300, 5)
    torch.testing.assert_close(tcnca.by_transforms(average, x), average(x)[0], rtol=0, atol=1e-4)


def test_time_is_measured_both_ways_at_every_length():
    figures = list(tcnca.cost_law((16, 64)))
    assert [figure.holds is None for figure in figures] == [False, False, True] * 2 + [True]
    assert all(figure.measured > 0 for figure in figures)


def test_the_pair_lies_in_another_chunk_than_the_query():
    example = tcnca.TASK.batch(64, seed=3)
    assert example.tokens.shape[1] == 50
    assert 2 * tcnca.TASK.keys <= 16 < (example.tokens.shape[1] - 1) // 16 * 16


def test_the_models_of_text_have_about_the_same_size():
    models = [LanguageModel(256, tcnca.BYTES_DIM, layers, position="none") for layers in tcnca.BYTES.values()]
    ours, mega = map(parameters, models)
    assert abs(ours / mega - 1) < 0.02


def test_the_experiment_yields_every_figure(monkeypatch):
    for name in ("RECALL_STEPS", "BYTES_STEPS"):
        monkeypatch.setattr(tcnca, name, 1)
    monkeypatch.setattr(tcnca, "cost_law", lambda: iter(()))
    monkeypatch.setattr(tcnca, "accuracy", lambda layers, seed, step: float("gates" not in layers) + seed)
    monkeypatch.setattr(tcnca, "text_bits", lambda layers, seed, step: 2.0 if "tcnca" in layers else 4.0)
    figures = list(tcnca.reproduce(Run(seeds=(0, 1, 2))))
    assert [figure.holds for figure in figures] == [True, False, True]
    assert figures[-1].measured == 0.5


def test_a_step_of_each_is_taken():
    for layers in tcnca.RECALL.values():
        assert 0 <= tcnca.TASK.score(tcnca.train(layers, 10, steps=1), examples=8) <= 1
