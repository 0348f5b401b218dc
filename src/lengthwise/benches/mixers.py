"""Benchmarks of the mixers against length: how time grows over a sequence, and what a token costs after a long one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch

from lengthwise.benches.row import Row
from lengthwise.contract import SequenceModule, StateTree
from lengthwise.measure import interleaved
from lengthwise.models.build import build

LENGTHS = (1024, 4096, 16384, 65536)
CONTEXTS = (64, 65536)
TOKENS = 20
RECURRENT = (
    "linear_attention(heads=4)",
    "deltanet(heads=4)",
    "mamba",
    "mamba2",
    "s5",
    "rwkv + rwkv_channels",
    "rrwkv + rrwkv_channels",
    "min_gru",
    "min_lstm",
    "gru",
    "lstm",
    "mega",
    "tcnca",
    "megalodon",
)
"""Every mixer whose state doesn't grow without end."""

LINEAR = ("attention(heads=4, window=256)", *RECURRENT)
"""Every mixer whose time grows with the length."""


def mixers() -> Iterator[Row]:
    """Every mixer of linear time: forward over growing lengths."""
    for expression in LINEAR:
        yield against_length(expression)


def decoding() -> Iterator[Row]:
    """Every mixer whose state is bounded: a token after a short and after a long context, four layers of it."""
    for expression in RECURRENT:
        yield one_token(expression)


def autocast() -> Iterator[Row]:
    """Every mixer of linear time: a training step of a layer in bfloat16 against float32."""
    for expression in LINEAR:
        yield in_half_precision(expression)


@torch.no_grad()
def against_length(expression: str, dim: int = 256) -> Row:
    """The exponent of a mixer's time over the length."""
    torch.manual_seed(0)
    module = build(expression, dim=dim)
    x = torch.randn(1, LENGTHS[-1], dim)
    times = interleaved({str(n): partial(module, x[:, :n]) for n in LENGTHS}, repeats=5)
    exponent = slope([math.log(n) for n in LENGTHS], [math.log(times[str(n)]) for n in LENGTHS])
    return Row(
        f"{expression} forward, L {LENGTHS[-1]}, dim {dim}",
        times[str(LENGTHS[-1])],
        note=f"time grows as L^{exponent:.2f} over L {LENGTHS[0]} to {LENGTHS[-1]}",
    )


@torch.no_grad()
def one_token(expression: str, dim: int = 512, layers: int = 4) -> Row:
    """The time of a token after both contexts, and the share of it that reading the weights once takes."""
    torch.manual_seed(0)
    module = build(f"{layers}*({expression})", dim=dim)
    token = torch.randn(1, 1, dim)
    states = {n: after(module, n, dim) for n in CONTEXTS}

    def decode(n: int) -> None:
        state = states[n]
        for _ in range(TOKENS):
            _, state = module(token, state)

    def read() -> None:
        for _ in range(TOKENS):
            for weight in module.parameters():
                weight.sum()

    calls: dict[str, Callable[[], None]] = {**{str(n): partial(decode, n) for n in CONTEXTS}, "reading": read}
    short, long, reading = (seconds / TOKENS for seconds in interleaved(calls, repeats=15).values())
    return Row(
        f"{layers} layers of {expression}, one token after {CONTEXTS[-1]}, dim {dim}",
        long,
        {f"after {CONTEXTS[0]}": short / long},
        reading / long,
        "reading the weights",
        note=f"{1 / long:.0f} tokens per second, {1 / reading:.0f} at that limit",
    )


def in_half_precision(expression: str, dim: int = 512, length: int = 1024) -> Row:
    """A layer forward and backward under autocast, over the same in float32."""
    torch.manual_seed(0)
    module = build(f"1*({expression})", dim=dim)
    x = torch.randn(2, length, dim)

    def train(enabled: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y, _ = module(x)
        y.float().square().mean().backward()

    times = interleaved({"bfloat16": partial(train, True), "float32": partial(train, False)}, repeats=9)
    name = f"{expression}, forward and backward in bfloat16, L {length}, batch {len(x)}, dim {dim}"
    return Row(name, times["bfloat16"], {"float32": times["float32"] / times["bfloat16"]})


def after(module: SequenceModule, length: int, dim: int) -> StateTree:
    """The state after so many random tokens."""
    state = None
    for part in torch.randn(1, length, dim).split(4096, 1):
        _, state = module(part, state)
    return state


def slope(x: list[float], y: list[float]) -> float:
    """Of the line nearest to the points in the sum of squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    numerator = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return numerator / sum((a - mean_x) ** 2 for a in x)
