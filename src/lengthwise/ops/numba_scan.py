"""The diagonal scan's kernels, in real and complex numbers and in logarithms.

Each input is read once and each output written once. A unit of work is one row of the batch and one block of channels;
the loop over channels is the vector loop. It goes over slices from their first number, since numba tests the indices of
a loop from `begin` on for being negative. What differs between the recurrences is one token: `_forward` is given the
step, `_backward` the step in reverse and that of a token which begins a document. Backward the channels run from the
last to the first too: memory that is read in one direction throughout comes several times as fast.
"""

# mypy: disable-error-code="call-arg"
# ruff: noqa: ARG001  (the steps of all recurrences take the same arguments)

from __future__ import annotations

import numpy as np

from lengthwise.ops.numba_math import exp, fused, kernel, log1p


@kernel
def _copy(source, target):
    fused()
    for e in range(source.shape[0]):
        target[e] = source[e]


@kernel
def _forward(step, a, b, initial, starts, h, final, width, first, last):
    length, channels = b.shape[1], b.shape[2]
    blocks = (channels + width - 1) // width
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * width
        end = min(channels, begin + width)
        row_a, last_a = min(row, a.shape[0] - 1), a.shape[1] - 1
        for t in range(length):
            now = h[row, t, begin:end]
            if starts.size > 0 and starts[row, t]:
                _copy(b[row, t, begin:end], now)
            else:
                before = initial[row, begin:end] if t == 0 else h[row, t - 1, begin:end]
                step(a[row_a, min(t, last_a), begin:end], b[row, t, begin:end], before, now)
        _copy(h[row, length - 1, begin:end] if length > 0 else initial[row, begin:end], final[row, begin:end])


@kernel
def _backward(reverse, begin_document, a, h, initial, starts, d_h, g, d_a, d_b, width, first, last):
    length, channels = h.shape[1], h.shape[2]
    blocks = (channels + width - 1) // width
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * width
        end = min(channels, begin + width)
        row_a, last_a, last_d_a = min(row, a.shape[0] - 1), a.shape[1] - 1, d_a.shape[1] - 1
        carried = g[row, begin:end]
        for t in range(length - 1, -1, -1):
            given, to_a, to_b = d_h[row, t, begin:end], d_a[row, min(t, last_d_a), begin:end], d_b[row, t, begin:end]
            if starts.size > 0 and starts[row, t]:
                begin_document(given, carried, to_a, to_b)
            else:
                before = initial[row, begin:end] if t == 0 else h[row, t - 1, begin:end]
                rates = a[row_a, min(t, last_a), begin:end]
                reverse(rates, before, h[row, t, begin:end], given, carried, to_a, to_b)


@kernel
def _step(a, b, before, after):
    fused()
    for e in range(b.shape[0]):
        after[e] = a[e] * before[e] + b[e]


@kernel
def _reverse(a, before, after, d_h, g, d_a, d_b):
    fused()
    for e in range(d_h.shape[0] - 1, -1, -1):
        gradient = g[e] + d_h[e]
        d_b[e] = gradient
        d_a[e] = gradient * np.conj(before[e])
        g[e] = gradient * np.conj(a[e])


@kernel
def _reverse_start(d_h, g, d_a, d_b):
    fused()
    for e in range(d_h.shape[0] - 1, -1, -1):
        d_b[e] = g[e] + d_h[e]
        d_a[e] = 0
        g[e] = 0


@kernel
def _reverse_shared(a, before, after, d_h, g, d_a, d_b):
    """As `_reverse`, where all tokens have the same a, whose gradient is their sum."""
    fused()
    for e in range(d_h.shape[0] - 1, -1, -1):
        gradient = g[e] + d_h[e]
        d_b[e] = gradient
        d_a[e] += gradient * np.conj(before[e])
        g[e] = gradient * np.conj(a[e])


@kernel
def _reverse_shared_start(d_h, g, d_a, d_b):
    fused()
    for e in range(d_h.shape[0] - 1, -1, -1):
        d_b[e] = g[e] + d_h[e]
        g[e] = 0


@kernel
def _log_step(log_a, log_b, before, after):
    """after = log(exp(log_a + before) + exp(log_b)), from the larger of the two so that nothing overflows."""
    fused()
    zero = log_a.dtype.type(0)
    for e in range(log_b.shape[0]):
        old, new = log_a[e] + before[e], log_b[e]
        high, low = max(old, new), min(old, new)
        # Equal is also both -inf, whose difference is not a number.
        difference = low - high if low < high else zero
        after[e] = high + log1p(exp(difference))


@kernel
def _log_reverse(log_a, before, after, d_h, g, d_a, d_b):
    """The share of the past in the new state, exp(log_a + before - after), divides the gradient between the two."""
    fused()
    zero = log_a.dtype.type(0)
    for e in range(d_h.shape[0] - 1, -1, -1):
        gradient = g[e] + d_h[e]
        past = gradient * exp(min(log_a[e] + before[e] - after[e], zero))
        d_a[e] = past
        d_b[e] = gradient - past
        g[e] = past


@kernel(entry=True)
def forward(a, b, initial, starts, h, final, width, first, last):
    """h_t = a_t h_{t-1} + b_t, where h_{t-1} counts as zero at a start.

    b, h: [batch, length, channels], real or complex. a: as b, or [1, 1, channels], the same for every token.
    width: channels of a unit. first, last: the units to run.
    """
    fused()
    _forward(_step, a, b, initial, starts, h, final, width, first, last)


@kernel(entry=True)
def backward(a, h, initial, starts, d_h, g, d_a, d_b, width, first, last):
    """A scan in reverse. g: the gradient of the final state, which becomes that of the initial one."""
    fused()
    _backward(_reverse, _reverse_start, a, h, initial, starts, d_h, g, d_a, d_b, width, first, last)


@kernel(entry=True)
def shared_backward(a, h, initial, starts, d_h, g, d_a, d_b, width, first, last):
    """As `backward`, of an a that is the same for every token. d_a: [batch, 1, channels], zero before."""
    fused()
    _backward(_reverse_shared, _reverse_shared_start, a, h, initial, starts, d_h, g, d_a, d_b, width, first, last)


@kernel(entry=True)
def log_forward(log_a, log_b, initial, starts, h, final, width, first, last):
    """The scan of exp(log_a), exp(log_b) with all in logarithms; -inf is the logarithm of an absent state."""
    fused()
    _forward(_log_step, log_a, log_b, initial, starts, h, final, width, first, last)


@kernel(entry=True)
def log_backward(log_a, h, initial, starts, d_h, g, d_a, d_b, width, first, last):
    """Gradients of `log_forward`. g: the gradient of the final state, which becomes that of the initial one."""
    fused()
    _backward(_log_reverse, _reverse_start, log_a, h, initial, starts, d_h, g, d_a, d_b, width, first, last)
