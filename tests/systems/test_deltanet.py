"""The experiment of DeltaNet: its baseline, and that a short run learns what it is to learn."""

import pytest
import torch

import lengthwise as lw
from lengthwise.contract import Layout
from lengthwise.systems import deltanet
from lengthwise.systems.system import Run
from lengthwise.tasks.recall import Overwriting


def test_the_additive_memory_keeps_the_contract():
    # Compiling can't be tested where annotations are checked at run time.
    lw.laws.check(deltanet.AdditiveMemory(8, heads=2), laws=[name for name in lw.laws.LAWS if name != "compile"])


def test_the_additive_memory_returns_the_mean_of_what_was_written_for_one_key():
    module = deltanet.AdditiveMemory(8, heads=1)
    q = torch.zeros(1, 3, 1, 8)
    v = torch.randn(1, 3, 1, 8)
    o, _ = module.recall(q, q, v, torch.ones(1, 3, 1), None, Layout.packed([[3]]).starts)
    torch.testing.assert_close(o[:, -1], v.mean(1), rtol=1e-4, atol=1e-5)


def test_both_models_have_states_of_equal_size_but_for_the_normaliser():
    sizes = [kind(32, heads=1).state_nbytes(1) for kind in (lw.mixers.deltanet.DeltaNet, deltanet.AdditiveMemory)]
    assert sizes[1] - sizes[0] == 4 * 32


@pytest.mark.slow
def test_the_claim_holds_with_one_seed():
    task = Overwriting()
    delta, additive = (deltanet.accuracy(task, mixer, 0, deltanet.STEPS) for mixer in ("deltanet", "additive"))
    assert delta >= 0.95
    assert delta >= additive + 0.15


def test_the_experiment_reports_every_figure(monkeypatch):
    monkeypatch.setattr(deltanet, "STEPS", 1)
    monkeypatch.setattr(deltanet, "RECALL_STEPS", 1)
    monkeypatch.setattr(deltanet, "chunked_speedup", lambda: 6.0)
    told = []
    figures = list(deltanet.reproduce(Run(seeds=(0,), progress=lambda text, fraction: told.append(fraction))))
    assert [figure.holds for figure in figures] == [False, False, True, None]
    assert told == sorted(told)
