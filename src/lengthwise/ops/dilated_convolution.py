"""Dilated causal convolution: each output sees K inputs that lie d tokens apart, so that few layers see far back.

    y_t = b + Σ_{i=0..K-1} W_{K-1-i} x_{t-id}

x: [batch, length, in]; y: [batch, length, out]. weight: [channels, K] where it is depthwise, so that each channel sees
itself alone, and [out, in, K] where it is dense: as `torch.nn.Conv1d` has them, the last tap on the present token.
Inputs before the first token are those of the history, the (K - 1) d inputs before it; no tap reaches across a start.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from lengthwise.ops.backend import resolve
from lengthwise.ops.fused import work_dtype
from lengthwise.ops.short_convolution import (
    check_tail,
    first_tail,
    next_tail,
    short_convolution,
    short_convolution_reference,
)

Weight = Float[Tensor, "channels kernel"] | Float[Tensor, "out in kernel"]


def dilated_convolution_reference(
    x: Float[Tensor, "batch length in"],
    weight: Weight,
    bias: Float[Tensor, " out"] | None = None,
    history: Float[Tensor, "batch history in"] | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
    *,
    dilation: int = 1,
) -> tuple[Float[Tensor, "batch length out"], Float[Tensor, "batch history in"]]:
    """The definition: one shifted product for each tap. Any dtype and device."""
    if weight.ndim == 2:
        return short_convolution_reference(x, weight, bias, history, starts, dilation=dilation)
    before = (weight.shape[2] - 1) * dilation
    history = x.new_zeros(x.shape[0], before, x.shape[2]) if history is None else history
    return _tap_by_tap(x, weight, bias, history, starts, dilation), next_tail(x, history, starts)


def dilated_convolution(
    x: Float[Tensor, "batch length in"],
    weight: Weight,
    bias: Float[Tensor, " out"] | None = None,
    history: Float[Tensor, "batch history in"] | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
    *,
    dilation: int = 1,
    backend: str = "auto",
) -> tuple[Float[Tensor, "batch length out"], Float[Tensor, "batch history in"]]:
    """y for every token, and the history to go on from: the last (K - 1) dilation inputs.

    history: zeros if None. starts: True where a token begins a document; no tap reaches from it or a later token to
    what was before. A depthwise kernel is computed by `short_convolution`, whose backends there are ("numba" or
    "reference"); a dense one by PyTorch's convolution ("torch"), or by one matrix product for each tap where documents
    start.

    Computed in float32, or in float64 if x is; y has the dtype of x, the history that of the computation.
    Raises InputError for a dilation below 1, an unknown backend, and a history that doesn't fit the kernel.
    """
    if weight.ndim == 2:
        return short_convolution(x, weight, bias, history, starts, dilation=dilation, backend=backend)
    history = first_tail(x, weight.shape[2], dilation) if history is None else history
    check_tail(history, weight.shape[2], dilation)
    form = resolve(backend, ("torch", "reference"), x)
    given_dtype, dtype = x.dtype, work_dtype(x.dtype)
    x, weight, history = x.to(dtype), weight.to(dtype), history.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    if form == "reference" or starts is not None or x.shape[1] == 0:
        y = _tap_by_tap(x, weight, bias, history, starts, dilation)
    else:
        channels_first = torch.cat([history, x], 1).transpose(1, 2)
        y = F.conv1d(channels_first, weight, bias, dilation=dilation).transpose(1, 2)
    return y.to(given_dtype), next_tail(x, history, starts)


def newest_output(
    inputs: Float[Tensor, "batch history_and_1 in"],
    weight: Weight,
    bias: Float[Tensor, " out"] | None = None,
    *,
    dilation: int = 1,
) -> Float[Tensor, "batch 1 out"]:
    """y of one token, given it behind its history: reads K inputs, however many the history has.

    Raises InputError for a history that doesn't fit the kernel.
    """
    check_tail(inputs[:, :-1], weight.shape[-1], dilation)
    dtype = work_dtype(inputs.dtype)
    seen, weight = inputs[:, ::dilation].to(dtype), weight.to(dtype)
    y = (seen * weight.t()).sum(1) if weight.ndim == 2 else F.linear(seen.mT.flatten(1), weight.flatten(1))
    return (y if bias is None else y + bias.to(dtype)).to(inputs.dtype)[:, None]


def _tap_by_tap(
    x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor, starts: Tensor | None, dilation: int
) -> Tensor:
    """The sum of a matrix product for each tap."""
    before, length = history.shape[1], x.shape[1]
    inputs = torch.cat([history, x], 1)
    document = None if starts is None else F.pad(starts.cumsum(1), (before, 0))
    y = x.new_zeros(*x.shape[:2], weight.shape[0]) if bias is None else bias.expand(*x.shape[:2], -1)
    for tap, w in enumerate(weight.unbind(2)):
        reached = slice(tap * dilation, tap * dilation + length)
        seen = inputs[:, reached]
        if document is not None:
            seen = seen.masked_fill((document[:, reached] != document[:, before:])[..., None], 0)
        y = y + F.linear(seen, w)
    return y
