"""The diagonal scan's kernels, in real numbers and in logarithms. Each input is read once and each output written once.

A unit of work is one row of the batch and one block of channels; the loop over channels is the vector loop. It goes
over slices from their first number, since numba tests the indices of a loop from `begin` on for being negative.
"""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

from lengthwise.ops.numba_math import exp, fused, kernel, log1p

WIDTH = 256
"""Channels of a unit of work: long enough for reading memory at full speed."""


@kernel
def _step(a, b, before, after):
    fused()
    for e in range(a.shape[0]):
        after[e] = a[e] * before[e] + b[e]


@kernel
def _copy(source, target):
    fused()
    for e in range(source.shape[0]):
        target[e] = source[e]


@kernel(entry=True)
def forward(a, b, initial, starts, h, final, first, last):
    """h_t = a_t h_{t-1} + b_t, where h_{t-1} counts as zero at a start. a, b, h: [batch, length, channels]."""
    fused()
    length, channels = a.shape[1], a.shape[2]
    blocks = (channels + WIDTH - 1) // WIDTH
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * WIDTH
        end = min(channels, begin + WIDTH)
        for t in range(length):
            now = h[row, t, begin:end]
            if starts.size > 0 and starts[row, t]:
                _copy(b[row, t, begin:end], now)
            else:
                before = initial[row, begin:end] if t == 0 else h[row, t - 1, begin:end]
                _step(a[row, t, begin:end], b[row, t, begin:end], before, now)
        _copy(h[row, length - 1, begin:end] if length > 0 else initial[row, begin:end], final[row, begin:end])


@kernel
def _reverse(a, before, d_h, g, d_a, d_b):
    fused()
    for e in range(a.shape[0]):
        gradient = g[e] + d_h[e]
        d_b[e] = gradient
        d_a[e] = gradient * before[e]
        g[e] = gradient * a[e]


@kernel
def _reverse_start(d_h, g, d_a, d_b):
    fused()
    for e in range(d_h.shape[0]):
        d_b[e] = g[e] + d_h[e]
        d_a[e] = 0
        g[e] = 0


@kernel(entry=True)
def backward(a, h, initial, starts, d_h, g, d_a, d_b, first, last):
    """A scan in reverse. g: the gradient of the final state, which becomes that of the initial one."""
    fused()
    length, channels = a.shape[1], a.shape[2]
    blocks = (channels + WIDTH - 1) // WIDTH
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * WIDTH
        end = min(channels, begin + WIDTH)
        carried = g[row, begin:end]
        for t in range(length - 1, -1, -1):
            given, to_a, to_b = d_h[row, t, begin:end], d_a[row, t, begin:end], d_b[row, t, begin:end]
            if starts.size > 0 and starts[row, t]:
                _reverse_start(given, carried, to_a, to_b)
            else:
                before = initial[row, begin:end] if t == 0 else h[row, t - 1, begin:end]
                _reverse(a[row, t, begin:end], before, given, carried, to_a, to_b)


@kernel
def _log_step(log_a, log_b, before, after):
    """after = log(exp(log_a + before) + exp(log_b)), from the larger of the two so that nothing overflows."""
    fused()
    zero = log_a.dtype.type(0)
    for e in range(log_a.shape[0]):
        old, new = log_a[e] + before[e], log_b[e]
        high, low = max(old, new), min(old, new)
        # Equal is also both -inf, whose difference is not a number.
        difference = low - high if low < high else zero
        after[e] = high + log1p(exp(difference))


@kernel(entry=True)
def log_forward(log_a, log_b, initial, starts, h, final, first, last):
    """The scan of exp(log_a), exp(log_b) with all in logarithms; -inf is the logarithm of an absent state."""
    fused()
    length, channels = log_a.shape[1], log_a.shape[2]
    blocks = (channels + WIDTH - 1) // WIDTH
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * WIDTH
        end = min(channels, begin + WIDTH)
        for t in range(length):
            now = h[row, t, begin:end]
            if starts.size > 0 and starts[row, t]:
                _copy(log_b[row, t, begin:end], now)
            else:
                before = initial[row, begin:end] if t == 0 else h[row, t - 1, begin:end]
                _log_step(log_a[row, t, begin:end], log_b[row, t, begin:end], before, now)
        _copy(h[row, length - 1, begin:end] if length > 0 else initial[row, begin:end], final[row, begin:end])


@kernel
def _log_reverse(log_a, before, after, d_h, g, d_a, d_b):
    """The share of the past in the new state, exp(log_a + before - after), divides the gradient between the two."""
    fused()
    zero = log_a.dtype.type(0)
    for e in range(log_a.shape[0]):
        gradient = g[e] + d_h[e]
        past = gradient * exp(min(log_a[e] + before[e] - after[e], zero))
        d_a[e] = past
        d_b[e] = gradient - past
        g[e] = past


@kernel(entry=True)
def log_backward(log_a, h, initial, starts, d_h, g, d_a, d_b, first, last):
    """Gradients of `log_forward`. g: the gradient of the final state, which becomes that of the initial one."""
    fused()
    length, channels = log_a.shape[1], log_a.shape[2]
    blocks = (channels + WIDTH - 1) // WIDTH
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * WIDTH
        end = min(channels, begin + WIDTH)
        carried = g[row, begin:end]
        for t in range(length - 1, -1, -1):
            given, to_a, to_b = d_h[row, t, begin:end], d_a[row, t, begin:end], d_b[row, t, begin:end]
            if starts.size > 0 and starts[row, t]:
                _reverse_start(given, carried, to_a, to_b)
            else:
                before = initial[row, begin:end] if t == 0 else h[row, t - 1, begin:end]
                _log_reverse(log_a[row, t, begin:end], before, h[row, t, begin:end], given, carried, to_a, to_b)
