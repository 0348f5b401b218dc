"""The short convolution's kernels: all taps, the bias and the activation in one pass over the input."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np

from lengthwise.ops.numba_math import fused, kernel, sigmoid

WIDTH = 256
"""Channels of a unit of work: long enough for reading memory at full speed."""


@kernel
def _add_tap(total, weight, x):
    fused()
    for i in range(x.shape[0]):
        total[i] += weight[i] * x[i]


@kernel
def _write(total, y, silu):
    fused()
    if silu:
        for i in range(y.shape[0]):
            y[i] = total[i] * sigmoid(total[i])
    else:
        for i in range(y.shape[0]):
            y[i] = total[i]


@kernel
def _sum_taps(total, x, weight, bias, tail, row, t, seen, begin, end):
    """total = bias + sum_j weight[taps - 1 - j] x_{t-j} over the `seen` tokens before t and t itself."""
    taps = weight.shape[0]
    initial = bias[begin:end]
    for i in range(initial.shape[0]):
        total[i] = initial[i]
    for j in range(seen + 1):
        if j <= t:
            _add_tap(total, weight[taps - 1 - j, begin:end], x[row, t - j, begin:end])
        else:
            _add_tap(total, weight[taps - 1 - j, begin:end], tail[row, taps - 1 + t - j, begin:end])


@kernel(entry=True)
def forward(x, weight, bias, tail, starts, silu, y, first, last):
    """x, y: [batch, length, channels]. weight: [taps, channels]. tail: [batch, taps - 1, channels]."""
    fused()
    length, channels, taps = x.shape[1], x.shape[2], weight.shape[0]
    blocks = (channels + WIDTH - 1) // WIDTH
    total = np.zeros(WIDTH, x.dtype)
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * WIDTH
        end, seen = min(begin + WIDTH, channels), taps - 2
        for t in range(length):
            seen = 0 if starts.size > 0 and starts[row, t] else min(seen + 1, taps - 1)
            _sum_taps(total, x, weight, bias, tail, row, t, seen, begin, end)
            _write(total, y[row, t, begin:end], silu)


@kernel
def _before_activation(total, d_y, d_bias, silu):
    """total, the sum of the taps, becomes the gradient of that sum."""
    fused()
    if silu:
        one = total.dtype.type(1)
        for i in range(d_y.shape[0]):
            s = sigmoid(total[i])
            total[i] = d_y[i] * s * (one + total[i] * (one - s))
            d_bias[i] += total[i]
    else:
        for i in range(d_y.shape[0]):
            total[i] = d_y[i]
            d_bias[i] += total[i]


@kernel
def _reverse_tap(gradient, weight, x, d_x, d_weight):
    fused()
    for i in range(x.shape[0]):
        d_x[i] += weight[i] * gradient[i]
        d_weight[i] += x[i] * gradient[i]


@kernel
def _reverse_present(gradient, weight, x, d_x, d_weight):
    fused()
    for i in range(x.shape[0]):
        d_x[i] = weight[i] * gradient[i]
        d_weight[i] += x[i] * gradient[i]


@kernel(entry=True)
def backward(x, weight, bias, tail, starts, silu, d_y, d_x, d_weight, d_bias, d_tail, first, last):
    """The sums are taken again instead of being kept. d_weight: [batch, taps, channels], d_bias: [batch, channels];
    these and d_tail are zero before.
    """
    fused()
    length, channels, taps = x.shape[1], x.shape[2], weight.shape[0]
    blocks = (channels + WIDTH - 1) // WIDTH
    total = np.zeros(WIDTH, x.dtype)
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * WIDTH
        end, seen = min(begin + WIDTH, channels), taps - 2
        for t in range(length):
            seen = 0 if starts.size > 0 and starts[row, t] else min(seen + 1, taps - 1)
            if silu:
                _sum_taps(total, x, weight, bias, tail, row, t, seen, begin, end)
            _before_activation(total, d_y[row, t, begin:end], d_bias[row, begin:end], silu)
            present, d_present = x[row, t, begin:end], d_x[row, t, begin:end]
            _reverse_present(total, weight[taps - 1, begin:end], present, d_present, d_weight[row, taps - 1, begin:end])
            for j in range(1, seen + 1):
                k, p = taps - 1 - j, taps - 1 + t - j
                tap, d_tap = weight[k, begin:end], d_weight[row, k, begin:end]
                if j <= t:
                    _reverse_tap(total, tap, x[row, t - j, begin:end], d_x[row, t - j, begin:end], d_tap)
                else:
                    _reverse_tap(total, tap, tail[row, p, begin:end], d_tail[row, p, begin:end], d_tap)
