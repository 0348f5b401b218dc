"""The long convolution's kernel for a single token: one pass over the past, without a transform."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

from lengthwise.ops.numba_math import fused, kernel

WIDTH = 256
"""Channels of a unit of work: long enough for reading memory at full speed."""


@kernel
def _add_product(total, h, x):
    fused()
    for i in range(x.shape[0]):
        total[i] += h[i] * x[i]


@kernel(entry=True)
def dot(x, h, y, first, last):
    """y += Σ_s h_{t−s} x_s for the last token t. x, h: [length, channels], y: [channels]; first, last: units."""
    fused()
    length, channels = x.shape
    for unit in range(first, last):
        begin = unit * WIDTH
        end = min(begin + WIDTH, channels)
        for s in range(length):
            _add_product(y[begin:end], h[length - 1 - s, begin:end], x[s, begin:end])
