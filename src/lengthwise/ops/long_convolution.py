"""Long causal convolution of each channel with a filter of its own, as long as the input.

    y_t[c] = Σ_{s ≤ t} h_{t−s}[c] x_s[c]          x, y: [batch, length, channels], h: [taps, channels]

Taps behind the end of the filter are 0. The fast form is the product of the Fourier transforms of input and filter,
padded with zeros so that nothing wraps around onto what is asked for: the convolution is exact but for rounding,
which is relative to the largest number of a document. It takes a few channels at a time, so that what lies between the
transforms stays in the processor's cache, and keeps no spectrum for the backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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

BLOCK = 2**19
"""Numbers that are transformed at a time: more leave the processor's cache between two transforms."""

CHANNELS = 8
"""Channels that are taken at least: fewer are less than what is read of memory at a time."""

ODD_FACTORS = (1, 3, 5, 9, 15)
"""Transforms of these times a power of two take equally long for each number."""


def long_convolution_reference(
    x: Float[Tensor, "batch length channels"],
    h: Float[Tensor, "taps channels"],
    starts: Bool[Tensor, "batch new"] | None = None,
    past: int = 0,
) -> Float[Tensor, "batch new channels"]:
    """The definition: one shifted product for each tap. Any dtype and device."""
    length = x.shape[1]
    first = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
    if starts is not None:
        first[:, past:] = starts.long()
    document = first.cumsum(1)
    y = torch.zeros_like(x[:, past:])
    for lag in range(min(h.shape[0], length)):
        shifted = F.pad(x, (0, 0, lag, 0))[:, past:length]
        seen = F.pad(document, (lag, 0), value=-1)[:, past:length] == document[:, past:]
        y = y + h[lag] * shifted.masked_fill(~seen[..., None], 0)
    return y


def long_convolution(
    x: Float[Tensor, "batch length channels"],
    h: Float[Tensor, "taps channels"],
    starts: Bool[Tensor, "batch new"] | None = None,
    past: int = 0,
    *,
    backend: str = "auto",
) -> Float[Tensor, "batch new channels"]:
    """y for every token of x but the first `past`, which are inputs of earlier calls.

    Going on means to put the earlier inputs before the new ones; they cost one transform, and nothing is computed at
    their places. A single new token is one dot product with the past, without a transform.

    starts: for the new tokens, True where one begins a document; no tap reaches from it or a later token to what was
    before. Each document is convolved for itself, so not even rounding of one reaches another.
    backend: "torch" (by Fourier transforms) or "reference".

    Computed in float32, or in float64 if x is; y has the dtype of x. Raises InputError for a `past` that x doesn't
    have, and for an unknown backend.
    """
    if not 0 <= past <= x.shape[1]:
        raise InputError(f"past must be between 0 and the {x.shape[1]} tokens of x, got {past}")
    form, given, dtype = resolve(backend, ("torch", "reference"), x), x.dtype, fused.work_dtype(x.dtype)
    x, h = x.to(dtype), h.to(dtype)
    if form == "reference":
        return long_convolution_reference(x, h, starts, past).to(given)
    begins = fused.starts_or_none(starts, x)
    if fused.needs_graph(x, h):
        return torch.ops.lengthwise.long_convolution(x, h, begins, past).to(given)
    return _forward(x, h, begins, past).to(given)


@dataclass(frozen=True)
class Documents:
    """Documents of nearly equal length, each ending a row of the same width: [documents, width] throughout.

    index: of each token in [batch · length]; where a row begins before its document, of any token.
    inside: whether the token is of the document. asked: whether it is new, of the last tokens of the row.
    target: for each of those, its place in [batch · new].
    """

    index: Tensor
    inside: Tensor
    asked: Tensor
    target: Tensor


def gather_documents(starts: Tensor, past: int) -> Iterator[Documents]:
    """The documents of a batch that have new tokens, in groups by length, rounded up to a power of two."""
    batch, new = starts.shape
    length = past + new
    first = torch.zeros(batch, length, dtype=torch.bool, device=starts.device)
    first[:, past:] = starts
    first[:, 0] = True
    begin = first.flatten().nonzero()[:, 0]
    end = torch.cat([begin[1:], begin.new_tensor([batch * length])])
    row = begin // length
    has_new = end > row * length + past
    begin, end, row = begin[has_new], end[has_new], row[has_new]
    exponent = torch.searchsorted(2 ** torch.arange(63, device=begin.device), end - begin)
    for power in exponent.unique().tolist():
        of = exponent == power
        width = min(2**power, length)
        index = end[of, None] - width + torch.arange(width, device=begin.device)
        inside = index >= begin[of, None]
        asked = index[:, -min(width, new) :] - row[of, None] * length - past
        target = asked + row[of, None] * new
        yield Documents(index.clamp_min(0), inside, inside[:, -min(width, new) :] & (asked >= 0), target)


def _forward(x: Tensor, h: Tensor, starts: Tensor, past: int) -> Tensor:
    new = x.shape[1] - past
    if not _divided(starts, past):
        return _convolve(x, h, new)
    tokens, y = x.flatten(0, 1), x.new_empty(x.shape[0] * new, x.shape[2])
    for group in gather_documents(starts, past):
        rows = tokens[group.index].masked_fill_(~group.inside[..., None], 0)
        y[group.target[group.asked]] = _convolve(rows, h, group.asked.shape[1])[group.asked]
    return y.unflatten(0, (x.shape[0], new))


def _backward(d_y: Tensor, x: Tensor, h: Tensor, starts: Tensor, past: int) -> tuple[Tensor, Tensor]:
    if not _divided(starts, past):
        return _correlate(d_y, x, h)
    tokens = x.flatten(0, 1)
    d_x, d_h = torch.zeros_like(tokens), torch.zeros_like(h)
    for group in gather_documents(starts, past):
        rows = tokens[group.index].masked_fill_(~group.inside[..., None], 0)
        wanted = d_y.new_zeros(*group.asked.shape, d_y.shape[2])
        wanted[group.asked] = d_y.flatten(0, 1)[group.target[group.asked]]
        d_rows, d_taps = _correlate(wanted, rows, h)
        d_x[group.index[group.inside]] = d_rows[group.inside]
        d_h += d_taps
    return d_x.view_as(x), d_h


def _divided(starts: Tensor, past: int) -> bool:
    """Whether a document begins anywhere but before all that is seen."""
    return bool((starts if past else starts[:, 1:]).any())


def transform_size(least: int) -> int:
    """The smallest size from `least` on that transforms quickly."""
    return min(odd << (-(-least // odd) - 1).bit_length() for odd in ODD_FACTORS)


def _blocks(x: Tensor, taps: int, new: int) -> tuple[int, Iterator[slice]]:
    """The size of the transforms, and channels to take at a time.

    What a transform of this size wraps around falls on tokens that aren't asked for.
    """
    size = transform_size(max(x.shape[1], new + taps - 1))
    channels = max(CHANNELS, BLOCK // (size * x.shape[0]))
    return size, (slice(c, c + channels) for c in range(0, x.shape[2], channels))


def _spectrum(x: Tensor, size: int, end: int) -> Tensor:
    """The transform over the length of what is [..., length, channels], moved to end at the place `end`."""
    padded = x.new_zeros(*x.shape[:-2], x.shape[-1], size)
    padded[..., end - x.shape[-2] : end] = x.mT
    return torch.fft.rfft(padded)


def _convolve(x: Tensor, h: Tensor, new: int) -> Tensor:
    """y of the last `new` tokens."""
    batch, length, channels = x.shape
    taps = min(h.shape[0], length)
    if new == 1:
        return _dot(x[:, length - taps :], h[:taps])
    y = x.new_zeros(batch, new, channels)
    if y.numel() == 0 or taps == 0:
        return y
    size, blocks = _blocks(x, taps, new)
    for c in blocks:
        product = _spectrum(x[..., c], size, length).mul_(_spectrum(h[:taps, c], size, taps))
        y[..., c] = torch.fft.irfft(product, size)[..., length - new : length].mT
    return y


def _correlate(d_y: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and h, given that of y of the last tokens."""
    length, new = x.shape[1], d_y.shape[1]
    taps = min(h.shape[0], length)
    d_x, d_h = torch.zeros_like(x), torch.zeros_like(h)
    if d_y.numel() == 0 or taps == 0:
        return d_x, d_h
    if new == 1:
        recent = slice(length - taps, None)
        d_x[:, recent] = d_y * h[:taps].flip(0)
        d_h[:taps] = torch.einsum("btc,bc->tc", x[:, recent], d_y[:, 0]).flip(0)
        return d_x, d_h
    size, blocks = _blocks(x, taps, new)
    for c in blocks:
        slope = _spectrum(d_y[..., c], size, length)
        product = _spectrum(x[..., c], size, length).conj_physical_().mul_(slope).sum(0)
        d_h[:taps, c] = torch.fft.irfft(product, size)[:, :taps].mT
        product = slope.mul_(_spectrum(h[:taps, c], size, taps).conj_physical_())
        d_x[..., c] = torch.fft.irfft(product, size)[..., :length].mT
    return d_x, d_h


def _dot(x: Tensor, h: Tensor) -> Tensor:
    """Σ_s h_{t−s} x_s for the last token alone, [batch, 1, channels]."""
    if x.device.type != "cpu":
        return (x * h.flip(0)).sum(1, keepdim=True)
    kernels: Any = import_module("lengthwise.ops.numba_long_convolution")

    y = torch.zeros(x.shape[0], 1, x.shape[2], dtype=x.dtype)
    ranges = fused.parts(-(-x.shape[2] // kernels.WIDTH), x.shape[1] * x.shape[2])
    # Row by row, since the past may be a view of a buffer with room behind each row: that isn't to be copied.
    rows = [fused.arrays(x[row], h, y[row, 0]) for row in range(x.shape[0])]
    fused.run([partial(kernels.dot, *given, *r) for given in rows for r in ranges])
    return y


_forward_op = torch.library.custom_op(
    "lengthwise::long_convolution",
    _forward,
    mutates_args=(),
    schema="(Tensor x, Tensor h, Tensor starts, int past) -> Tensor",
)
_backward_op = torch.library.custom_op(
    "lengthwise::long_convolution_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor d_y, Tensor x, Tensor h, Tensor starts, int past) -> (Tensor, Tensor)",
)


@_forward_op.register_fake
def _forward_shape(x: Tensor, h: Tensor, starts: Tensor, past: int) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape[0], x.shape[1] - past, x.shape[2])


@_backward_op.register_fake
def _backward_shapes(d_y: Tensor, x: Tensor, h: Tensor, starts: Tensor, past: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return x.new_empty(x.shape), h.new_empty(h.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    *tensors, ctx.past = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
    return (*torch.ops.lengthwise.long_convolution_backward(d_y, *ctx.saved_tensors, ctx.past), None, None)


_forward_op.register_autograd(_gradients, setup_context=_save)
