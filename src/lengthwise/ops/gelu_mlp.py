"""A hidden layer with the GELU, whose hidden units are never kept.

    y = W₂ gelu(W₁ x + b₁) + b₂          gelu(h) = h (1 + tanh(√(2/π) (h + 0.044715 h³))) / 2

For narrow layers most of the time would go by in writing and reading hidden units, four for each number of x; here
each thread takes a few tokens at a time, and the backward pass computes their hidden units again.

Hendrycks and Gimpel 2016, arXiv 1606.08415.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lengthwise.ops import fused, memory
from lengthwise.ops.backend import resolve

AT_ONCE = 128
"""Tokens whose hidden units are computed at once."""


def gelu_mlp_reference(
    x: Float[Tensor, "*tokens width"],
    up: Float[Tensor, "hidden width"],
    up_bias: Float[Tensor, " hidden"],
    down: Float[Tensor, "outputs hidden"],
    down_bias: Float[Tensor, " outputs"],
) -> Float[Tensor, "*tokens outputs"]:
    """The definition."""
    hidden = functional.gelu(functional.linear(x, up, up_bias), approximate="tanh")
    return functional.linear(hidden, down, down_bias)


def gelu_mlp(
    x: Float[Tensor, "*tokens width"],
    up: Float[Tensor, "hidden width"],
    up_bias: Float[Tensor, " hidden"],
    down: Float[Tensor, "outputs hidden"],
    down_bias: Float[Tensor, " outputs"],
    *,
    backend: str = "auto",
) -> Float[Tensor, "*tokens outputs"]:
    """y of every token. up, down: W₁, W₂. backend: "numba", on the processor in float32 or float64; or "reference".

    The gradient of the kernels can't be differentiated again.
    """
    given = (x, up, up_bias, down, down_bias)
    form = "reference" if torch.compiler.is_compiling() else resolve(backend, ("numba", "reference"), *given)
    alike = x.dtype in fused.REAL and all(t.dtype == x.dtype for t in given) and not torch.is_autocast_enabled("cpu")
    if form == "reference" or not alike or fused.gemm(x.dtype) is None:
        return gelu_mlp_reference(*given)
    tokens = x.flatten(0, -2)
    y = GeluMLP.apply(tokens, *given[1:]) if fused.needs_graph(*given) else _forward(tokens, *given[1:])
    return y.unflatten(0, x.shape[:-1])


class GeluMLP(torch.autograd.Function):
    """The kernels. Keeps what it is given alone."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:  # type: ignore[override]
        """y."""
        ctx.save_for_backward(*given[:4])
        return _forward(*given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The gradients of all that it was given."""
        x, up, up_bias, down = ctx.saved_tensors
        kernels: Any = import_module("lengthwise.ops.numba_gelu_mlp")
        parts, d_x = _parts(x, up), memory.rows(*x.shape, dtype=x.dtype)
        found = [x.new_zeros(len(parts), *t.shape) for t in (up, up_bias, down)]
        rooms = x.new_empty(2, len(parts), AT_ONCE, len(up))
        given, gemm = fused.arrays(x, up, up_bias, down, d_y, d_x), fused.gemm(x.dtype)
        own = zip(*(fused.arrays(*d) for d in (*found, *rooms)), parts, strict=True)
        fused.run([partial(kernels.backward, gemm, *given, *sums, *part) for *sums, part in own])
        return d_x, *(d.sum(0) for d in found), d_y.sum(0)


def _forward(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    kernels: Any = import_module("lengthwise.ops.numba_gelu_mlp")
    y = memory.rows(len(x), len(down), dtype=x.dtype)
    given, gemm = fused.arrays(x, up, up_bias, down, down_bias, y), fused.gemm(x.dtype)
    parts = _parts(x, up)
    rooms = fused.arrays(*x.new_empty(len(parts), AT_ONCE, len(up)))
    fused.run([partial(kernels.forward, gemm, *given, room, *part) for room, part in zip(rooms, parts, strict=True)])
    return y


def _parts(x: Tensor, up: Tensor) -> list[tuple[int, int]]:
    """The tokens, divided among the threads."""
    return fused.parts(len(x), x.shape[0] * up.numel())
