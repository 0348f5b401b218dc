"""The short convolution's kernels: all taps, the bias and the activation in one pass over the input."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np

from lengthwise.ops.numba_math import fused, kernel, sigmoid

WIDTH = 256
"""Channels of a unit of work: long enough for reading memory at full speed."""


@kernel
def _add_tap(total, weight, x, begin, count):
    fused()
    for i in range(count):
        total[i] += weight[begin + i] * x[begin + i]


@kernel
def _write(total, y, begin, count, silu):
    fused()
    if silu:
        for i in range(count):
            y[begin + i] = total[i] * sigmoid(total[i])
    else:
        for i in range(count):
            y[begin + i] = total[i]


@kernel
def _sum_taps(total, x, weight, bias, tail, row, t, seen, begin, count):
    """total = bias + sum_j weight[taps - 1 - j] x_{t-j} over the `seen` tokens before t and t itself."""
    taps = weight.shape[0]
    for i in range(count):
        total[i] = bias[begin + i]
    for j in range(seen + 1):
        if j <= t:
            _add_tap(total, weight[taps - 1 - j], x[row, t - j], begin, count)
        else:
            _add_tap(total, weight[taps - 1 - j], tail[row, taps - 1 + t - j], begin, count)


@kernel(entry=True)
def forward(x, weight, bias, tail, starts, silu, y, first, last):
    """x, y: [batch, length, channels]. weight: [taps, channels]. tail: [batch, taps - 1, channels]."""
    fused()
    length, channels, taps = x.shape[1], x.shape[2], weight.shape[0]
    blocks = (channels + WIDTH - 1) // WIDTH
    total = np.zeros(WIDTH, x.dtype)
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * WIDTH
        count, seen = min(WIDTH, channels - begin), taps - 2
        for t in range(length):
            seen = 0 if starts.size > 0 and starts[row, t] else min(seen + 1, taps - 1)
            _sum_taps(total, x, weight, bias, tail, row, t, seen, begin, count)
            _write(total, y[row, t], begin, count, silu)


@kernel
def _before_activation(total, d_y, d_bias, begin, count, silu):
    """total, the sum of the taps, becomes the gradient of that sum."""
    fused()
    if silu:
        one = total.dtype.type(1)
        for i in range(count):
            s = sigmoid(total[i])
            total[i] = d_y[begin + i] * s * (one + total[i] * (one - s))
            d_bias[begin + i] += total[i]
    else:
        for i in range(count):
            total[i] = d_y[begin + i]
            d_bias[begin + i] += total[i]


@kernel
def _reverse_tap(gradient, weight, x, d_x, d_weight, begin, count):
    fused()
    for i in range(count):
        d_x[begin + i] += weight[begin + i] * gradient[i]
        d_weight[begin + i] += x[begin + i] * gradient[i]


@kernel
def _reverse_present(gradient, weight, x, d_x, d_weight, begin, count):
    fused()
    for i in range(count):
        d_x[begin + i] = weight[begin + i] * gradient[i]
        d_weight[begin + i] += x[begin + i] * gradient[i]


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
        count, seen = min(WIDTH, channels - begin), taps - 2
        for t in range(length):
            seen = 0 if starts.size > 0 and starts[row, t] else min(seen + 1, taps - 1)
            if silu:
                _sum_taps(total, x, weight, bias, tail, row, t, seen, begin, count)
            _before_activation(total, d_y[row, t], d_bias[row], begin, count, silu)
            _reverse_present(total, weight[taps - 1], x[row, t], d_x[row, t], d_weight[row, taps - 1], begin, count)
            for j in range(1, seen + 1):
                k, p = taps - 1 - j, taps - 1 + t - j
                if j <= t:
                    _reverse_tap(total, weight[k], x[row, t - j], d_x[row, t - j], d_weight[row, k], begin, count)
                else:
                    _reverse_tap(total, weight[k], tail[row, p], d_tail[row, p], d_weight[row, k], begin, count)
