"""Short depthwise causal convolution, which mixes each channel with its last few values.

    y_t[c] = act(bias[c] + sum_{j=0..K-1} weight[c, K-1-j] x_{t-j}[c])

x, y: [batch, length, channels]; weight: [channels, kernel] with kernel K. weight[:, -1] multiplies the present token.
Taps that reach before the first token read the tail, the K - 1 inputs before it; none reach across a start.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from lengthwise.errors import InputError
from lengthwise.ops import fused
from lengthwise.ops.backend import resolve


def short_convolution_reference(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels kernel"],
    bias: Float[Tensor, " channels"] | None = None,
    tail: Float[Tensor, "batch history channels"] | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
    activation: str | None = None,
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch history channels"]]:
    """The definition: one shifted product for each tap. Any dtype and device."""
    taps, length = weight.shape[1], x.shape[1]
    tail = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if tail is None else tail
    history = torch.cat([tail, x], 1)
    document = None if starts is None else F.pad(starts.cumsum(1), (taps - 1, 0))
    y = torch.zeros_like(x) if bias is None else bias.expand_as(x)
    for k in range(taps):
        term = weight[:, k] * history[:, k : k + length]
        if document is not None:
            term = term.masked_fill((document[:, k : k + length] != document[:, taps - 1 :])[..., None], 0)
        y = y + term
    return (F.silu(y) if activation == "silu" else y), _next_tail(x, tail, starts)


def short_convolution(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels kernel"],
    bias: Float[Tensor, " channels"] | None = None,
    tail: Float[Tensor, "batch history channels"] | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
    activation: str | None = None,
    *,
    backend: str = "auto",
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch history channels"]]:
    """y for every token, and the tail to go on from: the last kernel - 1 inputs, before the activation.

    tail: [batch, kernel - 1, channels], zeros if None. starts: True where a token begins a document; no tap reaches
    from it or a later token to what was before. activation: "silu" or None. backend: "numba" (one pass over the
    input, forward and backward) or "reference".

    Computed in float32, or in float64 if x is; y has the dtype of x, the tail that of the computation.
    Raises InputError for an unknown activation or backend, and for a tail that doesn't fit the kernel.
    """
    if activation not in (None, "silu"):
        raise InputError(f"activation must be 'silu' or None, got {activation!r}")
    taps = weight.shape[1]
    dtype = fused.work_dtype(x.dtype)
    if tail is None:
        tail = x.new_zeros(x.shape[0], taps - 1, x.shape[2], dtype=dtype)
    elif tail.shape[1] != taps - 1:
        raise InputError(f"a kernel of {taps} goes on from a tail of {taps - 1} tokens, got {tail.shape[1]}")
    form, given_dtype = resolve(backend, ("numba", "reference"), x), x.dtype
    bias = x.new_zeros(x.shape[2], dtype=dtype) if bias is None else bias
    x, weight, bias, tail = (v.to(dtype) for v in (x, weight, bias, tail))
    if form == "reference":
        y, after = short_convolution_reference(x, weight, bias, tail, starts, activation)
        return y.to(given_dtype), after
    given = (x, weight.t(), bias, tail, fused.starts_or_none(starts, x))
    if fused.needs_graph(*given):
        y = torch.ops.lengthwise.short_convolution(*given, activation == "silu")
    else:
        y = _forward(*given, activation == "silu")
    return y.to(given_dtype), _next_tail(x, tail, starts)


def _next_tail(x: Tensor, tail: Tensor, starts: Tensor | None) -> Tensor:
    """The last inputs, zero where a document has started after them. Doesn't keep x alive."""
    keep, length = tail.shape[1], x.shape[1]
    recent = x[:, length - keep :].clone() if length >= keep else torch.cat([tail[:, length:], x], 1)
    if starts is None or keep == 0:
        return recent
    later = starts.flip(1).cumsum(1).flip(1) - starts.int()  # documents that start after each token
    before = starts.sum(1, keepdim=True).expand(-1, keep)
    cut = torch.cat([before, later], 1)[:, length:] > 0
    return recent.masked_fill(cut[..., None], 0)


def _ranges(shape: torch.Size, taps: int) -> list[tuple[int, int]]:
    kernels: Any = import_module("lengthwise.ops.numba_convolution")

    return fused.parts(shape[0] * -(-shape[2] // kernels.WIDTH), shape.numel() * taps)


def _forward(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, starts: Tensor, silu: bool) -> Tensor:
    kernels: Any = import_module("lengthwise.ops.numba_convolution")

    y = torch.empty(x.shape, dtype=x.dtype)
    x_, weight_, bias_, tail_, starts_, y_ = fused.arrays(x, weight, bias, tail, starts, y)
    ranges = _ranges(x.shape, weight.shape[0])
    fused.run([partial(kernels.forward, x_, weight_, bias_, tail_, starts_, silu, y_, *r) for r in ranges])
    return y


def _backward(
    d_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, starts: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernels: Any = import_module("lengthwise.ops.numba_convolution")

    d_x, d_tail = torch.empty(x.shape, dtype=x.dtype), torch.zeros(tail.shape, dtype=x.dtype)
    d_weight = torch.zeros(x.shape[0], *weight.shape, dtype=x.dtype)
    d_bias = torch.zeros(x.shape[0], *bias.shape, dtype=x.dtype)
    given = fused.arrays(x, weight, bias, tail, starts)
    results = fused.arrays(d_y, d_x, d_weight, d_bias, d_tail)
    ranges = _ranges(x.shape, 2 * weight.shape[0])
    fused.run([partial(kernels.backward, *given, silu, *results, *r) for r in ranges])
    return d_x, d_weight.sum(0), d_bias.sum(0), d_tail


_forward_op = torch.library.custom_op(
    "lengthwise::short_convolution",
    _forward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor tail, Tensor starts, bool silu) -> Tensor",
)
_backward_op = torch.library.custom_op(
    "lengthwise::short_convolution_backward",
    _backward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor d_y, Tensor x, Tensor weight, Tensor bias, Tensor tail, Tensor starts, bool silu)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)


@_forward_op.register_fake
def _forward_shape(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@_backward_op.register_fake
def _backward_shapes(
    _: Tensor, x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, *__: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape), tail.new_empty(tail.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
    return (*torch.ops.lengthwise.short_convolution_backward(d_y, *ctx.saved_tensors, ctx.silu), None, None)


_forward_op.register_autograd(_gradients, setup_context=_save)
