"""Benchmarks of the mixers against length: how time grows over a sequence, and what a token costs after a long one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from lengthwise.benches.row import Row
from lengthwise.measure import interleaved
from lengthwise.models.build import build

DIM = 256
LENGTHS = (1024, 4096, 16384, 65536)
TOKENS = 50
LINEAR = (
    "attention(heads=4, window=256)",
    "linear_attention(heads=4)",
    "deltanet(heads=4)",
    "mamba",
    "min_gru",
    "min_lstm",
    "gru",
    "lstm",
)
"""Every mixer whose time grows with the length and whose state is bounded."""


def mixers() -> Iterator[Row]:
    """Every mixer of linear time, forward over growing lengths, and for a token after a short and a long context."""
    for expression in LINEAR:
        yield from against_length(expression)


def against_length(expression: str, dim: int = DIM) -> Iterator[Row]:
    """The exponent of a mixer's time over the length, and its time for a token after long and short contexts."""
    torch.manual_seed(0)
    module = build(expression, dim=dim)
    x = torch.randn(1, LENGTHS[-1], dim)
    with torch.no_grad():
        whole = interleaved({str(n): partial(module, x[:, :n]) for n in LENGTHS}, repeats=5)
        exponent = slope([math.log(n) for n in LENGTHS], [math.log(whole[str(n)]) for n in LENGTHS])
        yield Row(
            f"{expression} forward, L {LENGTHS[-1]}, dim {dim}",
            whole[str(LENGTHS[-1])],
            note=f"time grows as L^{exponent:.2f} over L {LENGTHS[0]} to {LENGTHS[-1]}",
        )
        states = {n: module(x[:, :n])[1] for n in (LENGTHS[0], LENGTHS[-1])}

        def decode(n: int) -> None:
            state = states[n]
            for _ in range(TOKENS):
                _, state = module(x[:, :1], state)

        times = interleaved({str(n): partial(decode, n) for n in states}, repeats=15)
        short, long = (times[str(n)] / TOKENS for n in states)
        yield Row(
            f"{expression}, one token after {LENGTHS[-1]}, dim {dim}", long, {f"after {LENGTHS[0]}": short / long}
        )


def slope(x: list[float], y: list[float]) -> float:
    """Of the line nearest to the points in the sum of squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    numerator = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return numerator / sum((a - mean_x) ** 2 for a in x)
