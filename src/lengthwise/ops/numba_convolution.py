"""The depthwise convolution's kernels: all taps, the bias and the activation in one pass over the input.

Tokens whose distance isn't a multiple of the dilation have nothing to do with each other: they are as many convolutions
without dilation as its number, its phases. A unit of work is a run of neighbouring phases over the whole length, so
narrow that the inputs that its taps still need stay in the cache, however far they are apart in the sequence.
"""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np

from lengthwise.ops.numba_math import fused, kernel, sigmoid

WIDTH = 512
"""Channels of a unit of work at most: long enough for reading memory at full speed."""

NARROWEST = 64
"""Channels below which a row isn't divided among threads: the vectors that one turn of a loop takes."""

IN_CACHE = 2**16
"""Numbers of the input that a unit of work goes on needing."""


@kernel
def _add_tap(total, weight, w, x, s, count):
    """total += weight[w:] * x[s:], over `count` numbers."""
    fused()
    w, s = np.uint64(w), np.uint64(s)
    for i in range(np.uint64(count)):
        total[i] += weight[w + i] * x[s + i]


@kernel
def _add_four_taps(total, weight, w, tap, x, s, step, count):
    """Adds the tap at `w` times the input at `s`, and three more taps, each `tap` and `step` further back."""
    fused()
    w_0, w_1, w_2, w_3 = np.uint64(w), np.uint64(w - tap), np.uint64(w - 2 * tap), np.uint64(w - 3 * tap)
    s_0, s_1, s_2, s_3 = np.uint64(s), np.uint64(s - step), np.uint64(s - 2 * step), np.uint64(s - 3 * step)
    for i in range(np.uint64(count)):
        near = weight[w_0 + i] * x[s_0 + i] + weight[w_1 + i] * x[s_1 + i]
        total[i] += near + (weight[w_2 + i] * x[s_2 + i] + weight[w_3 + i] * x[s_3 + i])


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
def _sum_taps(total, x, weight, bias, tail, here, there, turn, seen, steps, begin, count):
    """total = bias + sum_j weight[taps - 1 - j] x_{t - j dilation} for j = 0..seen, `turn` of which x holds itself.

    x, weight, tail: flat. here: where x_t is; there: where it would be in the tail. steps: where the present tap is,
    from one tap to the next, and from one input to the next.
    """
    inside, (last, channels, step) = min(seen, turn), steps
    present = last + begin
    initial = bias[begin : begin + count]
    for i in range(initial.shape[0]):
        total[i] = initial[i]
    j = 0
    while j + 3 <= inside:
        _add_four_taps(total, weight, present - j * channels, channels, x, here - j * step, step, count)
        j += 4
    while j <= inside:
        _add_tap(total, weight, present - j * channels, x, here - j * step, count)
        j += 1
    while j <= seen:
        _add_tap(total, weight, present - j * channels, tail, there - j * step, count)
        j += 1


@kernel
def _unit(unit, channels, width, dilation, phases):
    """The row, the channels and the phases that a number stands for: where they begin, and how many."""
    runs = (dilation + phases - 1) // phases
    blocks = (channels + width - 1) // width
    begin, phase = (unit // runs % blocks) * width, (unit % runs) * phases
    return unit // (runs * blocks), begin, min(width, channels - begin), phase, min(phases, dilation - phase)


@kernel
def _seen(reach, row, t, taps, dilation):
    """Taps beside the present one that stay in the document."""
    return taps - 1 if reach.size == 0 else min(taps - 1, reach[row, t] // dilation)


@kernel(entry=True)
def forward(x, weight, bias, tail, reach, dilation, silu, y, width, phases, first, last):
    """x, y: [batch, length, channels]. weight: [taps, channels]. tail: [batch, (taps - 1) dilation, channels].
    reach: [batch, length], tokens before each one in its document, or nothing where there is no limit.
    """
    fused()
    length, channels, taps, before = x.shape[1], x.shape[2], weight.shape[0], tail.shape[1]
    flat_x, flat_weight, flat_tail = x.reshape(-1), weight.reshape(-1), tail.reshape(-1)
    total, steps = np.zeros(width, x.dtype), ((taps - 1) * channels, channels, dilation * channels)
    for unit in range(first, last):
        row, begin, count, phase, phases_here = _unit(unit, channels, width, dilation, phases)
        for turn in range((length - phase + dilation - 1) // dilation):
            for t in range(turn * dilation + phase, min(turn * dilation + phase + phases_here, length)):
                seen = _seen(reach, row, t, taps, dilation)
                here, there = (row * length + t) * channels + begin, ((row + 1) * before + t) * channels + begin
                _sum_taps(total, flat_x, flat_weight, bias, flat_tail, here, there, turn, seen, steps, begin, count)
                _write(total, y[row, t, begin : begin + count], silu)


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
def _reverse_tap(gradient, weight, d_weight, w, x, d_x, s, count):
    fused()
    w, s = np.uint64(w), np.uint64(s)
    for i in range(np.uint64(count)):
        d_x[s + i] += weight[w + i] * gradient[i]
        d_weight[w + i] += x[s + i] * gradient[i]


@kernel
def _reverse_present(gradient, weight, d_weight, w, x, d_x, s, count):
    fused()
    w, s = np.uint64(w), np.uint64(s)
    for i in range(np.uint64(count)):
        d_x[s + i] = weight[w + i] * gradient[i]
        d_weight[w + i] += x[s + i] * gradient[i]


@kernel(entry=True)
def backward(
    x, weight, bias, tail, reach, dilation, silu, d_y, d_x, d_tail, width, phases, first, last, d_weight, d_bias
):
    """The sums are taken again instead of being kept. d_weight, d_bias: the share of these units; these and d_tail are
    zero before. An input's gradient is set by its own token, to which later ones add.
    """
    fused()
    length, channels, taps, before = x.shape[1], x.shape[2], weight.shape[0], tail.shape[1]
    flat_x, flat_weight, flat_tail = x.reshape(-1), weight.reshape(-1), tail.reshape(-1)
    flat_d_x, flat_d_weight, flat_d_tail = d_x.reshape(-1), d_weight.reshape(-1), d_tail.reshape(-1)
    total, steps = np.zeros(width, x.dtype), ((taps - 1) * channels, channels, dilation * channels)
    for unit in range(first, last):
        row, begin, count, phase, phases_here = _unit(unit, channels, width, dilation, phases)
        present = steps[0] + begin
        for turn in range((length - phase + dilation - 1) // dilation):
            for t in range(turn * dilation + phase, min(turn * dilation + phase + phases_here, length)):
                seen = _seen(reach, row, t, taps, dilation)
                here, there = (row * length + t) * channels + begin, ((row + 1) * before + t) * channels + begin
                if silu:
                    _sum_taps(total, flat_x, flat_weight, bias, flat_tail, here, there, turn, seen, steps, begin, count)
                _before_activation(total, d_y[row, t, begin : begin + count], d_bias[begin : begin + count], silu)
                _reverse_present(total, flat_weight, flat_d_weight, present, flat_x, flat_d_x, here, count)
                for j in range(1, seen + 1):
                    w = present - j * channels
                    if j <= turn:
                        _reverse_tap(total, flat_weight, flat_d_weight, w, flat_x, flat_d_x, here - j * steps[2], count)
                    else:
                        _reverse_tap(
                            total, flat_weight, flat_d_weight, w, flat_tail, flat_d_tail, there - j * steps[2], count
                        )
