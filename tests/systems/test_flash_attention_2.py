from __future__ import annotations

import dataclasses

import pytest
import torch

from lengthwise.ops.flash_attention import Tiling, accumulate
from lengthwise.ops.patterns import causal, full
from lengthwise.ops.tiles import Frame, Tiles
from lengthwise.ops.visibility import aligned
from lengthwise.systems import flash_attention_2 as system
from lengthwise.systems.system import Run


@pytest.mark.parametrize("case", system.CASES, ids=lambda case: case.name)
def test_errors_at_a_small_size(case):
    small = dataclasses.replace(case, queries=min(case.queries, 300), keys=min(case.keys, 390))
    small = dataclasses.replace(small, keys=max(small.keys, small.queries))
    output, gradient, finite = system.errors_of(small, seed=0)
    assert finite == 1
    if case.factor == 1:
        assert output <= 2e-5
        assert gradient <= 2e-4


def test_both_versions_give_the_same():
    q, k, v = (torch.randn(2, 40, 8) for _ in range(3))
    tiling = Tiling(Frame(Tiles(aligned(causal(), 40, 40), 16, 16)), None, 0.3, 1, 1)
    for rows, tiles in tiling.frame.tiles.rows:
        parts = [
            version(tiling, q[:, rows], k, v, rows, tiles) for version in (accumulate, system.accumulate_version_1)
        ]
        for two, one in zip(*parts, strict=True):
            torch.testing.assert_close(two, one)


def test_operations_are_counted():
    with system.ElementwiseOperations((2, 3)) as counter:
        x = torch.zeros(2, 3) + 1
        x.mul_(2)
        torch.zeros(3, 2).exp()
        torch.ones(2, 2) @ x
    assert counter.count == 2


def test_tiles_that_causal_attention_skips():
    assert system.visited(full()) == 32 * 32
    assert system.visited(causal()) == 32 * 33 // 2


@pytest.mark.slow
def test_reproduces_what_does_not_depend_on_the_clock():
    figures = [f for f in system.reproduce(Run(seeds=(0,))) if not f.name.startswith("time")]
    assert len(figures) == 6
    assert all(f.holds for f in figures)
