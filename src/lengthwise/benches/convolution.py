"""Benchmarks of convolutions: the long one against its own Fourier transforms alone and against softmax attention, the
dilated one against the library's and against reading memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from lengthwise.benches.row import Row
from lengthwise.benches.scan import MEMORY, Form, compared, seconds_of_reading
from lengthwise.measure import interleaved
from lengthwise.ops.dilated_convolution import dilated_convolution as dilate
from lengthwise.ops.long_convolution import long_convolution as convolve
from lengthwise.ops.long_convolution import transform_size

LENGTHS = (4096, 16384, 65536)
HEADS, HEAD_DIM = 4, 16
TRANSFORMS, ATTENTION = "its Fourier transforms alone", "causal scaled_dot_product_attention"
DILATIONS = (1, 81, 729)


def long_convolution() -> Iterator[Row]:
    """Filters as long as the input, at growing lengths."""
    for length in LENGTHS:
        yield from at_length(length)


def at_length(length: int, heads: int = HEADS, head_dim: int = HEAD_DIM) -> Iterator[Row]:
    """Forward, and forward and backward, against what the transforms take and against attention of the same width."""
    torch.manual_seed(0)
    channels = heads * head_dim
    x, h, grad = torch.randn(1, length, channels), torch.randn(length, channels), torch.randn(1, length, channels)
    q, k, v, slope = torch.randn(4, 1, heads, length, head_dim)
    forward = {
        "convolution": lambda: convolve(x, h),
        TRANSFORMS: transforms(length, channels, there=2, back=1),
        ATTENTION: lambda: attend(q, k, v),
    }
    whole = {
        "convolution": differentiated(convolve, [x, h], grad),
        TRANSFORMS: transforms(length, channels, there=5, back=3),
        ATTENTION: differentiated(attend, [q, k, v], slope),
    }
    for kind, forms, gradient in (("forward", forward, False), ("forward and backward", whole, True)):
        slow = forms.pop(ATTENTION)
        with torch.set_grad_enabled(gradient):
            times = interleaved(forms, repeats=15, warmup=2)
            times |= interleaved({ATTENTION: slow}, repeats=5, warmup=0, limit=1)
        yield Row(
            f"long_convolution {kind}, L {length}, {channels} channels",
            times["convolution"],
            {peer: times[peer] / times["convolution"] for peer in (TRANSFORMS, ATTENTION)},
            note=f"attention: {heads} heads of {head_dim}, run once where it takes more than a second",
        )


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of [batch, heads, length, head_dim]."""
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def differentiated(form: Callable[..., Tensor], given: list[Tensor], grad: Tensor) -> Callable[[], object]:
    """A function that runs a forward and a backward pass."""
    leaves = [t.clone().requires_grad_() for t in given]
    return lambda: torch.autograd.grad(form(*leaves), leaves, grad)


def transforms(length: int, channels: int, there: int, back: int) -> Callable[[], None]:
    """A function that runs so many transforms of every channel, of rows that are padded and contiguous already."""
    rows = torch.randn(channels, transform_size(2 * length - 1))
    spectrum = torch.fft.rfft(rows)

    def run() -> None:
        for _ in range(there):
            torch.fft.rfft(rows)
        for _ in range(back):
            torch.fft.irfft(spectrum, rows.shape[1])

    return run


def dilated_convolution(length: int = 65536, channels: int = 64, kernel: int = 9) -> Iterator[Row]:
    """Depthwise, at the dilations of the first and the last layers of a network of four, against PyTorch's
    convolution."""
    torch.manual_seed(0)
    given = [torch.randn(1, length, channels), torch.randn(channels, kernel), torch.randn(channels)]
    # Forward: x in, y out; backward: x and the gradient of y in, that of x out.
    least = seconds_of_reading(given[0], 2, 5)
    for dilation in DILATIONS:
        forms: dict[str, Form] = {
            "fused": lambda x, w, b, dilation=dilation: dilate(x, w, b, dilation=dilation)[0],
            "conv1d": partial(library_convolution, dilation=dilation),
        }
        sizes = f"L {length}, {channels} channels, kernel {kernel}, dilation {dilation}"
        yield from compared(f"dilated_convolution, {sizes}", forms, given, least, MEMORY, repeats=5)


def library_convolution(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """PyTorch's depthwise convolution, which wants the channels first."""
    padded = F.pad(x.mT, ((weight.shape[1] - 1) * dilation, 0))
    return F.conv1d(padded, weight[:, None], bias, dilation=dilation, groups=weight.shape[0]).mT
