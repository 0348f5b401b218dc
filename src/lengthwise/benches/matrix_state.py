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
SIZES = f"L {LENGTH}, {HEADS} heads of {HEAD_DIM}"
PRODUCTS = "matrix products, float32"


def linear_attention() -> Iterator[Row]:
    """The chunked form without decay and with one per head and per channel."""
    torch.manual_seed(0)
    q, k, v = heads(), heads(), heads()
    shapes = {"no decay": None, "decay per head": (HEADS,), "decay per channel": (HEADS, HEAD_DIM)}
    for name, shape in shapes.items():
        decay = None if shape is None else (-torch.rand(1, LENGTH, *shape)).requires_grad_()
        chunk = linear.CHUNK if shape is None or len(shape) == 1 else linear.CHANNEL_CHUNK
        # The decay's own exponents aren't counted, so that the share is of matrix products alone.
        forward = 4 * chunk * HEAD_DIM + 4 * HEAD_DIM**2
        yield from against_reference(
            f"linear_attention, {name}", linear.linear_attention, (q, k, v, decay), (forward, 3 * forward)
        )


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


def heads() -> Tensor:
    """Random queries or values."""
    return torch.randn(1, LENGTH, HEADS, HEAD_DIM).requires_grad_()


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

    rate = matmul_rate()
    for kind, work, per_token in zip(("forward", "forward and backward"), (forward, both), flops, strict=True):
        times = interleaved({b: partial(work, b) for b in ("torch", "reference")}, repeats=5)
        fast = times["torch"]
        share = per_token * LENGTH * HEADS / fast / rate
        yield Row(f"{name} {kind}, {SIZES}", fast, {"reference": times["reference"] / fast}, share, PRODUCTS)
