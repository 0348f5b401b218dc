"""The kernels of leaky integrate-and-fire neurons: the membrane stays in the cache, the rest is touched once."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

from lengthwise.ops.numba_math import fused, kernel

WIDTH = 256
"""Channels of a unit of work: long enough for reading memory at full speed."""


@kernel
def _step(x, membrane, charge, spikes, leak):
    """One token; the membrane becomes that after the reset."""
    fused()
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(x.shape[0]):
        h = membrane[i] + (x[i] - membrane[i]) * leak
        fired = h >= one
        charge[i] = h
        spikes[i] = one if fired else (zero if h < one else h)  # NaN stays NaN, so that nothing hides it
        membrane[i] = zero if fired else h


@kernel
def _clear(values):
    fused()
    for i in range(values.shape[0]):
        values[i] = 0


@kernel(entry=True)
def forward(x, starts, leak, membrane, charge, spikes, first, last):
    """x, charge, spikes: [batch, length, channels]. membrane: the initial one, [batch, channels], becomes the last."""
    fused()
    length, channels = x.shape[1], x.shape[2]
    blocks = (channels + WIDTH - 1) // WIDTH
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * WIDTH
        end = min(channels, begin + WIDTH)
        now = membrane[row, begin:end]
        for t in range(length):
            if starts.size > 0 and starts[row, t]:
                _clear(now)
            _step(x[row, t, begin:end], now, charge[row, t, begin:end], spikes[row, t, begin:end], leak)


@kernel
def _reverse(charge, d_spikes, g, d_x, leak, slope, width):
    """g, the gradient of the membrane after a token, becomes that of the membrane before it."""
    fused()
    zero, one = charge.dtype.type(0), charge.dtype.type(1)
    for i in range(charge.shape[0]):
        h = charge[i]
        v = width * (h - one)
        kept = zero if h >= one else one
        d_h = g[i] * kept + (d_spikes[i] - g[i] * h) * slope / (one + v * v)
        d_x[i] = d_h * leak
        g[i] = d_h - d_h * leak


@kernel(entry=True)
def backward(charge, starts, d_spikes, leak, slope, width, g, d_x, first, last):
    """g: the gradient of the last membrane, which becomes that of the initial one. slope / (1 + (width v)²) is the
    derivative that stands for the step's."""
    fused()
    length, channels = charge.shape[1], charge.shape[2]
    blocks = (channels + WIDTH - 1) // WIDTH
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * WIDTH
        end = min(channels, begin + WIDTH)
        carried = g[row, begin:end]
        for t in range(length - 1, -1, -1):
            given, to_x = d_spikes[row, t, begin:end], d_x[row, t, begin:end]
            _reverse(charge[row, t, begin:end], given, carried, to_x, leak, slope, width)
            if starts.size > 0 and starts[row, t]:
                _clear(carried)
