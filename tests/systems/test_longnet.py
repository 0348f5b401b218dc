import pytest
import torch

from lengthwise.ops.attention import attention
from lengthwise.ops.dilated_attention import branches_of, dilated_attention
from lengthwise.systems import cue, longnet
from lengthwise.systems.system import Run
from lengthwise.tasks.cue import Cue


def test_entries_are_the_logits_that_are_seen():
    """Counted from what the output depends on where every branch is alone."""
    for geometry, length in (((8,), (1,)), 8), (((3, 8), (1, 2)), 13), (((4, 9), (1, 5)), 23):
        seen = 0
        for w, r in zip(*geometry, strict=True):
            for h in range(4):
                own = h // -(-4 // r)
                seen += sum(
                    i // w == j // w and i % w % r == own == j % w % r for i in range(length) for j in range(i + 1)
                )
        assert longnet.entries(geometry, length, 4) == seen / 4
    assert longnet.entries(longnet.GEOMETRIES["block-local"], 512, 4) > longnet.entries(
        longnet.GEOMETRIES["dilated"], 512, 4
    )


def test_the_dense_baseline_is_dense():
    q, k, v = (torch.randn(1, 512, 2, 4) for _ in range(3))
    y = dilated_attention(q, k, v, branches_of(*longnet.GEOMETRIES["dense"]))
    torch.testing.assert_close(y, attention(q, k, v), rtol=1e-5, atol=1e-5)  # float32, sums of 512


def test_the_experiment_on_few_steps(monkeypatch):
    monkeypatch.setattr(longnet, "STEPS", 2)
    monkeypatch.setattr(longnet, "LENGTHS", (64, 256))
    monkeypatch.setattr(longnet, "TASK", Cue(length=40))
    monkeypatch.setattr(cue, "BATCH", 2)
    monkeypatch.setattr(cue, "EXAMPLES", 16)
    told = []
    figures = list(longnet.reproduce(Run(seeds=(10, 11, 12), progress=lambda text, fraction: told.append(fraction))))
    assert [f.holds for f in figures[:3]] == [False, True, None]
    assert figures[4].measured > 0
    assert len(told) == 2 * 4 + 1
    assert told == sorted(told)


@pytest.mark.slow
def test_dilated_attention_names_a_cue_anywhere():
    """At an eighth of the length, where the steps suffice."""
    layers, task = longnet.layers(((4, 16, 64), (1, 2, 4))), Cue(length=64)
    assert cue.accuracy(layers, task, 10, steps=longnet.STEPS) >= 0.9
