"""The experiment's pieces, at sizes that take a moment."""

import pytest

from lengthwise.models.language_model import LanguageModel
from lengthwise.systems import rwkv, rwkv_model
from lengthwise.systems.experiments import parameters
from lengthwise.systems.system import Run


@pytest.fixture
def small(monkeypatch):
    for name, value in {"DIM": 32, "LENGTH": 16, "BATCH": 2, "STEPS": 2, "CONTEXTS": (16, 512), "TOKENS": 2}.items():
        monkeypatch.setattr(rwkv, name, value)


def test_both_models_have_about_the_same_size():
    ours = rwkv_model.build(rwkv_model.layers(3), rwkv.DIM)
    theirs = LanguageModel(256, rwkv.DIM, rwkv.BASELINE, position="rope", norm="layernorm")
    assert abs(parameters(theirs) / parameters(ours) - 1) < 0.1


def test_every_figure_is_measured(small):
    figures = list(rwkv.reproduce(Run(seeds=(10,))))
    _, _, apart, ours, theirs, *times = figures
    assert apart.holds
    assert ours.measured == 1
    assert theirs.measured == 512 / 16
    assert len(times) == 2
    assert all(figure.measured >= 0 for figure in figures)


def test_seeds_begin_with_different_weights(small):
    first, again, other = (rwkv.train_rwkv(seed, steps=1).head.weight for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
