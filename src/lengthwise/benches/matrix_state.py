"""Benchmarks of the matrix-state ops: linear attention and the delta rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from lengthwise.benches.row import Row
from lengthwise.measure import interleaved, matmul_rate
from lengthwise.ops import delta_rule as delta
from lengthwise.ops import linear_attention as linear

LENGTH, HEADS, HEAD_DIM = 4096, 4, 64
MAMBA2_HEADS, MAMBA2_KEY_DIM = 16, 128
PRODUCTS = "matrix products, float32"


def linear_attention() -> Iterator[Row]:
    """The chunked form without decay, with one per head and per channel, and with Mamba-2's sizes, where all heads
    share queries and keys."""
    torch.manual_seed(0)
    q, k, v = heads(), heads(), heads()
    shapes = {"no decay": None, "decay per head": (HEADS,), "decay per channel": (HEADS, HEAD_DIM)}
    for name, shape in shapes.items():
        decay = None if shape is None else (-torch.rand(1, LENGTH, *shape)).requires_grad_()
        chunk = linear.CHUNK if shape is None or len(shape) == 1 else linear.CHANNEL_CHUNK
        flops = linear_attention_arithmetic(chunk, HEAD_DIM, HEAD_DIM)
        yield from against_reference(f"linear_attention, {name}", linear.linear_attention, (q, k, v, decay), flops)
    q, k = heads(1, MAMBA2_KEY_DIM), heads(1, MAMBA2_KEY_DIM)
    v, decay = heads(MAMBA2_HEADS), (-torch.rand(1, LENGTH, MAMBA2_HEADS)).requires_grad_()
    flops = linear_attention_arithmetic(linear.CHUNK, MAMBA2_KEY_DIM, HEAD_DIM, MAMBA2_HEADS)
    name = f"linear_attention, Mamba-2 with state {MAMBA2_KEY_DIM}"
    yield from against_reference(name, linear.linear_attention, (q, k, v, decay), flops)


def linear_attention_arithmetic(chunk: int, key_dim: int, value_dim: int, sharing: int = 1) -> tuple[float, float]:
    """Floating-point operations of the matrix products for each token of a head, forward, and forward with backward,
    where so many heads share their queries and keys.

    Forward: Q Kᵀ, once for the heads that share it, its product with V; K V, Q S. Backward: two products for each
    product of the forward, and none of what is computed twice. A decay's exponents aren't counted.
    """
    forward = 2 * chunk * (key_dim / sharing + value_dim) + 4 * key_dim * value_dim
    return forward, 3 * forward


def delta_rule() -> Iterator[Row]:
    """The chunked delta rule."""
    torch.manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(1, LENGTH, HEADS, HEAD_DIM), dim=-1).requires_grad_()
    beta = torch.rand(1, LENGTH, HEADS).requires_grad_()
    yield from against_reference(
        "delta_rule", delta.delta_rule, (heads(), keys, heads(), beta), delta_rule_arithmetic(delta.CHUNK, HEAD_DIM)
    )


def delta_rule_arithmetic(chunk: int, dim: int) -> tuple[float, float]:
    """Floating-point operations for each token of a head, forward, and forward with backward, for heads of `dim`.

    Forward: K Kᵀ, the inverse (a third of chunk² operations a token), T E, Q Kᵀ and its product with U; K S, Q S, Kᵀ U.
    Backward: two products for each product of the forward, and none of what is computed twice.
    """
    within, across = 2 * chunk * dim, 2 * dim**2
    forward = 4 * within + 3 * across + chunk**2 / 3
    return forward, forward + 7 * within + 6 * across


def heads(count: int = HEADS, dim: int = HEAD_DIM) -> Tensor:
    """Random queries or values."""
    return torch.randn(1, LENGTH, count, dim).requires_grad_()


def against_reference(
    name: str, op: Callable[..., tuple[Tensor, Tensor]], tensors: tuple[Tensor | None, ...], flops: tuple[float, float]
) -> Iterator[Row]:
    """The fast form and the reference, forward, and forward with backward; `flops` of the fast one for each token of a
    head."""
    leaves = [t for t in tensors if t is not None]

    def forward(backend: str) -> None:
        with torch.no_grad():
            op(*tensors, backend=backend)

    def both(backend: str) -> None:
        o, _ = op(*tensors, backend=backend)
        torch.autograd.grad(o.sum(), leaves)

    rate, (count, dim) = matmul_rate(), tensors[2].shape[2:]  # type: ignore[union-attr]  # the values
    sizes = f"L {LENGTH}, {count} heads of {dim}"
    for kind, work, per_token in zip(("forward", "forward and backward"), (forward, both), flops, strict=True):
        times = interleaved({b: partial(work, b) for b in ("auto", "reference")}, repeats=5)
        fast = times["auto"]
        share = per_token * LENGTH * count / fast / rate
        yield Row(f"{name} {kind}, {sizes}", fast, {"reference": times["reference"] / fast}, share, PRODUCTS)
