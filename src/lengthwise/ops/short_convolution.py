"""Depthwise causal convolution, which mixes each channel with its last few values, or with every d-th of them.

    y_t[c] = act(bias[c] + sum_{j=0..K-1} weight[c, K-1-j] x_{t-jd}[c])

x, y: [batch, length, channels]; weight: [channels, kernel] with kernel K; d, the dilation, is 1 unless given.
weight[:, -1] multiplies the present token. Taps that reach before the first token read the tail, the (K - 1) d inputs
before it; none reach across a start.
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
from lengthwise.ops import fused, memory
from lengthwise.ops.backend import resolve


def short_convolution_reference(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels kernel"],
    bias: Float[Tensor, " channels"] | None = None,
    tail: Float[Tensor, "batch history channels"] | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
    activation: str | None = None,
    *,
    dilation: int = 1,
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch history channels"]]:
    """The definition: one shifted product for each tap. Any dtype and device."""
    before, length = (weight.shape[1] - 1) * dilation, x.shape[1]
    tail = x.new_zeros(x.shape[0], before, x.shape[2]) if tail is None else tail
    history = torch.cat([tail, x], 1)
    document = None if starts is None else F.pad(starts.cumsum(1), (before, 0))
    y = torch.zeros_like(x) if bias is None else bias.expand_as(x)
    for k in range(weight.shape[1]):
        reached = slice(k * dilation, k * dilation + length)
        term = weight[:, k] * history[:, reached]
        if document is not None:
            term = term.masked_fill((document[:, reached] != document[:, before:])[..., None], 0)
        y = y + term
    return (F.silu(y) if activation == "silu" else y), next_tail(x, tail, starts)


def short_convolution(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels kernel"],
    bias: Float[Tensor, " channels"] | None = None,
    tail: Float[Tensor, "batch history channels"] | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
    activation: str | None = None,
    *,
    dilation: int = 1,
    backend: str = "auto",
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch history channels"]]:
    """y for every token, and the tail to go on from: the last (kernel - 1) dilation inputs, before the activation.

    tail: [batch, (kernel - 1) dilation, channels], zeros if None. starts: True where a token begins a document; no tap
    reaches from it or a later token to what was before. activation: "silu" or None. dilation: tokens from one tap to
    the next. backend: "numba" (one pass over the input, forward and backward) or "reference".

    Computed in float32, or in float64 if x is; y has the dtype of x, the tail that of the computation. Raises
    InputError for an unknown activation or backend, a dilation below 1, and a tail that doesn't fit the kernel.
    """
    if activation not in (None, "silu"):
        raise InputError(f"activation must be 'silu' or None, got {activation!r}")
    dtype = fused.work_dtype(x.dtype)
    tail = first_tail(x, weight.shape[1], dilation) if tail is None else tail
    check_tail(tail, weight.shape[1], dilation)
    form, given_dtype = resolve(backend, ("numba", "reference"), x), x.dtype
    bias = x.new_zeros(x.shape[2], dtype=dtype) if bias is None else bias
    x, weight, bias, tail = (v.to(dtype) for v in (x, weight, bias, tail))
    if form == "reference":
        y, after = short_convolution_reference(x, weight, bias, tail, starts, activation, dilation=dilation)
        return y.to(given_dtype), after
    given = (x, weight.t(), bias, tail, fused.starts_or_none(starts, x))
    if fused.needs_graph(*given):
        y = torch.ops.lengthwise.short_convolution(*given, dilation, activation == "silu")
    else:
        y = _forward(*given, dilation, activation == "silu")
    return y.to(given_dtype), next_tail(x, tail, starts)


def first_tail(
    x: Float[Tensor, "batch length channels"], taps: int, dilation: int
) -> Float[Tensor, "batch history channels"]:
    """The tail before the first token: zeros, in the precision of the computation."""
    return x.new_zeros(x.shape[0], (taps - 1) * max(dilation, 1), x.shape[2], dtype=fused.work_dtype(x.dtype))


def check_tail(tail: Float[Tensor, "batch history channels"], taps: int, dilation: int) -> None:
    """Raises InputError for a dilation below 1 and a tail that doesn't fit the kernel."""
    if dilation < 1:
        raise InputError(f"dilation must be at least 1, got {dilation}")
    if tail.shape[1] != (before := (taps - 1) * dilation):
        spread = "" if dilation == 1 else f" with dilation {dilation}"
        raise InputError(f"a kernel of {taps}{spread} goes on from a tail of {before} tokens, got {tail.shape[1]}")


def next_tail(
    x: Float[Tensor, "batch length channels"],
    tail: Float[Tensor, "batch history channels"],
    starts: Bool[Tensor, "batch length"] | None,
) -> Float[Tensor, "batch history channels"]:
    """The last inputs, zero where a document has started after them. Doesn't keep x alive."""
    keep, length = tail.shape[1], x.shape[1]
    recent = x[:, length - keep :].clone() if length >= keep else torch.cat([tail[:, length:], x], 1)
    if starts is None or keep == 0:
        return recent
    later = starts.flip(1).cumsum(1).flip(1) - starts.int()  # documents that start after each token
    before = starts.sum(1, keepdim=True).expand(-1, keep)
    cut = torch.cat([before, later], 1)[:, length:] > 0
    return recent.masked_fill(cut[..., None], 0)


def _reach(starts: Tensor) -> Tensor:
    """Tokens before each one in its document, without end where none has started in the row yet."""
    if starts.numel() == 0:
        return torch.empty(0, 0, dtype=torch.int64)
    index = torch.arange(starts.shape[1]).expand_as(starts)
    return index - torch.where(starts, index, -(2**31)).cummax(1).values


def _division(shape: torch.Size, taps: int, dilation: int) -> tuple[int, int, list[tuple[int, int]]]:
    """Channels and phases of a unit of work, and the ranges of units that the threads take."""
    kernels: Any = import_module("lengthwise.ops.numba_convolution")

    threads, (batch, _, channels) = torch.get_num_threads(), shape
    width = min(kernels.WIDTH, channels)
    phases = max(1, min(kernels.IN_CACHE // max(width * taps, 1), -(-dilation // threads)))
    runs = -(-dilation // phases)
    while batch * runs * -(-channels // max(width, 1)) < threads and width > kernels.NARROWEST:
        width = -(-width // 2)
    units = batch * runs * -(-channels // max(width, 1))
    return width, phases, fused.parts(units, shape.numel() * taps)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, starts: Tensor, dilation: int, silu: bool
) -> Tensor:
    kernels: Any = import_module("lengthwise.ops.numba_convolution")

    y = memory.empty(*x.shape, dtype=x.dtype)
    *given, y_ = fused.arrays(x, weight, bias, tail, _reach(starts), y)
    width, phases, ranges = _division(x.shape, weight.shape[0], dilation)
    fused.run([partial(kernels.forward, *given, dilation, silu, y_, width, phases, *r) for r in ranges])
    return y


def _backward(
    d_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, starts: Tensor, dilation: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernels: Any = import_module("lengthwise.ops.numba_convolution")

    d_x, d_tail = memory.empty(*x.shape, dtype=x.dtype), torch.zeros(tail.shape, dtype=x.dtype)
    width, phases, ranges = _division(x.shape, 2 * weight.shape[0], dilation)
    d_weight = torch.zeros(len(ranges), *weight.shape, dtype=x.dtype)
    d_bias = torch.zeros(len(ranges), *bias.shape, dtype=x.dtype)
    given = fused.arrays(x, weight, bias, tail, _reach(starts))
    results = fused.arrays(d_y, d_x, d_tail)
    sums = zip(*fused.arrays(d_weight, d_bias), strict=True)
    calls = [
        partial(kernels.backward, *given, dilation, silu, *results, width, phases, *r, *s)
        for r, s in zip(ranges, sums, strict=True)
    ]
    fused.run(calls)
    return d_x, d_weight.sum(0), d_bias.sum(0), d_tail


_forward_op = torch.library.custom_op(
    "lengthwise::short_convolution",
    _forward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor tail, Tensor starts, int dilation, bool silu) -> Tensor",
)
_backward_op = torch.library.custom_op(
    "lengthwise::short_convolution_backward",
    _backward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor d_y, Tensor x, Tensor weight, Tensor bias, Tensor tail, Tensor starts, int dilation, bool silu)"
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
    *tensors, ctx.dilation, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.lengthwise.short_convolution_backward(d_y, *ctx.saved_tensors, ctx.dilation, ctx.silu)
    return (*gradients, None, None, None)


_forward_op.register_autograd(_gradients, setup_context=_save)
