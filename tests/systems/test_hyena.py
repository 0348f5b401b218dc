import pytest
import torch

from lengthwise.mixers.hyena import Hyena
from lengthwise.systems import hyena
from lengthwise.systems.system import Run

SIZES = {"max_length": 26, "emb_dim": 5, "filter_order": 8}


@torch.no_grad()
def test_without_gates_the_operator_is_linear():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 10, 8)
    results = {}
    for name, mixer in ((name, cls(8, **SIZES)) for name, cls in hyena.MIXERS.items()):
        zero, one, two, both = (mixer(v)[0] for v in (0 * x[0], x[0], x[1], x[0] + x[1]))
        results[name] = torch.allclose(both - zero, (one - zero) + (two - zero), rtol=1e-5, atol=1e-6)
    assert results == {"gated": False, "ungated": True, "free_filter": False}


def test_the_baselines_differ_in_one_thing_alone():
    shapes = {
        name: {key: p.shape for key, p in cls(8, **SIZES).named_parameters()} for name, cls in hyena.MIXERS.items()
    }
    assert shapes["ungated"] == shapes["gated"]
    differing = shapes["free_filter"].items() ^ shapes["gated"].items()
    assert all(key.startswith("filter.") for key, _ in differing)
    assert shapes["free_filter"]["filter.taps"] == (26, 8)


def test_a_free_filter_is_learned_under_the_window():
    torch.manual_seed(0)
    mixer = hyena.FreeFilterHyena(8, **SIZES)
    h = mixer.filters(10)
    torch.testing.assert_close(h, mixer.filter.taps[:10] * Hyena(8, **SIZES).filter.window(10).float())
    (slope,) = torch.autograd.grad(mixer(torch.randn(1, 10, 8))[0].sum(), [mixer.filter.taps])
    assert (slope[:10] != 0).any()
    assert (slope[10:] == 0).all()


def test_the_experiment_on_few_steps(monkeypatch):
    monkeypatch.setattr(hyena, "STEPS", 3)
    monkeypatch.setattr(hyena, "LENGTHS", (16, 64))
    told = []
    figures = list(hyena.reproduce(Run(seeds=(0,), progress=lambda text, fraction: told.append(fraction))))
    assert [f.holds for f in figures[:3]] == [False, False, None]
    assert all(f.measured > 0 for f in figures[3:])
    assert len(told) == 3 * 3 + 1
    assert told == sorted(told)


@pytest.mark.slow
def test_gates_recall_what_convolutions_alone_dont():
    gated, ungated = (hyena.accuracy(name, 10) for name in ("gated", "ungated"))
    assert gated >= 0.75
    assert gated - ungated >= 0.15
