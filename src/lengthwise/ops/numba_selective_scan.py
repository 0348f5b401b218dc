"""The selective scan's kernels: h stays in the first-level cache, 64 channels at a time, and never touches memory.

The forward keeps the state before the first token of each chunk; the backward runs a chunk again from there and then
goes through it in reverse. Memory is therefore O(batch · length · channels) for any size of state.
"""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np

from lengthwise.ops.numba_math import LN_2, LOG2_E, exp2, fused, kernel

WIDTH = 64
"""Channels that are run together: four vectors of AVX-512."""


@kernel
def _load(block, source, begin, count, scale):
    """block[n, i] = scale * source[begin + i, n] for i < count, else 0."""
    states = source.shape[1]
    for n in range(states):
        for i in range(count, WIDTH):
            block[n, i] = 0
    for i in range(count):
        for n in range(states):
            block[n, i] = scale * source[begin + i, n]


@kernel
def _clear(block):
    fused()
    for n in range(block.shape[0]):
        for i in range(WIDTH):
            block[n, i] = 0


@kernel
def _advance_one(step, drive, out, rates, h, b, c):
    fused()
    for i in range(WIDTH):
        value = exp2(step[i] * rates[i]) * h[i] + drive[i] * b
        h[i] = value
        out[i] += c * value


@kernel
def _advance_two(step, drive, out, rates_0, rates_1, h_0, h_1, b_0, b_1, c_0, c_1):
    fused()
    for i in range(WIDTH):
        value_0 = exp2(step[i] * rates_0[i]) * h_0[i] + drive[i] * b_0
        value_1 = exp2(step[i] * rates_1[i]) * h_1[i] + drive[i] * b_1
        h_0[i] = value_0
        h_1[i] = value_1
        out[i] += c_0 * value_0 + c_1 * value_1


@kernel
def _advance(step, drive, out, rates, h, b, c):
    """One token: h_n = exp(step rates_n) h_n + drive b_n, and out += sum_n c_n h_n.

    Two numbers of the state at a time, so that the sums aren't fetched and stored for each.
    """
    states = h.shape[0]
    for n in range(0, states - 1, 2):
        m = n + 1
        _advance_two(step, drive, out, rates[n], rates[m], h[n], h[m], b[n], b[m], c[n], c[m])
    if states % 2 == 1:
        n = states - 1
        _advance_one(step, drive, out, rates[n], h[n], b[n], c[n])


@kernel(entry=True)
def forward(x, dt, A, B, C, D, initial, starts, y, final, kept, chunk, first, last):
    """Units `first` to `last` of batch times blocks of channels. Writes y, final and, if it has room, kept.

    x, dt, y: [batch, length, channels]. A: [channels, state]. B, C: [batch, length, state]. D: [channels].
    initial, final: [batch, channels, state]. starts: [batch, length] or empty. kept: [batch, chunks, state, channels].
    """
    fused()
    length, channels, states = x.shape[1], x.shape[2], A.shape[1]
    blocks = (channels + WIDTH - 1) // WIDTH
    one, scale = x.dtype.type(1), x.dtype.type(LOG2_E)
    h, rates = np.zeros((states, WIDTH), x.dtype), np.zeros((states, WIDTH), x.dtype)
    step, drive, out = np.zeros(WIDTH, x.dtype), np.zeros(WIDTH, x.dtype), np.zeros(WIDTH, x.dtype)
    for unit in range(first, last):
        row, e = unit // blocks, (unit % blocks) * WIDTH
        count = min(WIDTH, channels - e)
        _load(rates, A, e, count, scale)
        _load(h, initial[row], e, count, one)
        for t in range(length):
            if starts.size > 0 and starts[row, t]:
                _clear(h)
            if kept.shape[1] > 0 and t % chunk == 0:
                for n in range(states):
                    for i in range(count):
                        kept[row, t // chunk, n, e + i] = h[n, i]
            for i in range(count):
                step[i] = dt[row, t, e + i]
                drive[i] = step[i] * x[row, t, e + i]
                out[i] = D[e + i] * x[row, t, e + i]
            _advance(step, drive, out, rates, h, B[row, t], C[row, t])
            for i in range(count):
                y[row, t, e + i] = out[i]
        for i in range(count):
            for n in range(states):
                final[row, e + i, n] = h[n, i]


@kernel
def _advance_kept(step, drive, rates, before, after, decays, b, alive):
    """One token, keeping the state after it and the decays; `alive` is 0 at a start and 1 elsewhere."""
    fused()
    for n in range(before.shape[0]):
        for i in range(WIDTH):
            decay = alive * exp2(step[i] * rates[n, i])
            decays[n, i] = decay
            after[n, i] = decay * before[n, i] + drive[i] * b[n]


@kernel(sums=True)
def _reverse(b, c, g, dy, step, drive, decays, before, after, rates, d_drive, d_step, d_rates, d_b, d_c):
    """One token in reverse: g becomes the gradient of the state before it."""
    fused()
    for n in range(g.shape[0]):
        to_b, to_c = dy.dtype.type(0), dy.dtype.type(0)
        for i in range(WIDTH):
            gradient = g[n, i] + c[n] * dy[i]
            to_c += dy[i] * after[n, i]
            to_b += gradient * drive[i]
            d_drive[i] += gradient * b[n]
            carried = gradient * decays[n, i]
            through = carried * before[n, i]
            d_step[i] += through * rates[n, i]
            d_rates[n, i] += through * step[i]
            g[n, i] = carried
        d_b[n] += to_b
        d_c[n] += to_c


@kernel(entry=True, sums=True)
def backward(
    d_y, d_final, x, dt, A, B, C, D, starts, kept, chunk, d_x, d_dt, d_A, d_B, d_C, d_D, d_initial, part, first, last
):
    """Gradients for units `first` to `last`. d_A, d_D have a slice for each row of the batch; d_B, d_C one for each
    part of the work, so that threads never add to the same number.
    """
    fused()
    length, channels, states = x.shape[1], x.shape[2], A.shape[1]
    blocks, dtype = (channels + WIDTH - 1) // WIDTH, x.dtype
    zero, one, scale, natural = dtype.type(0), dtype.type(1), dtype.type(LOG2_E), dtype.type(LN_2)
    rates, g, d_rates = (
        np.zeros((states, WIDTH), dtype),
        np.zeros((states, WIDTH), dtype),
        np.zeros((states, WIDTH), dtype),
    )
    decays, history = np.zeros((chunk, states, WIDTH), dtype), np.zeros((chunk + 1, states, WIDTH), dtype)
    steps, drives = np.zeros((chunk, WIDTH), dtype), np.zeros((chunk, WIDTH), dtype)
    dy, d_drive, d_step = np.zeros(WIDTH, dtype), np.zeros(WIDTH, dtype), np.zeros(WIDTH, dtype)
    for unit in range(first, last):
        row, e = unit // blocks, (unit % blocks) * WIDTH
        count = min(WIDTH, channels - e)
        _load(rates, A, e, count, scale)
        _load(g, d_final[row], e, count, one)
        _clear(d_rates)
        _clear(history[0])
        _clear(steps)
        _clear(drives)
        for i in range(WIDTH):
            dy[i] = 0
        for c in range((length - 1) // chunk, -1, -1):
            begin, end = c * chunk, min(length, c * chunk + chunk)
            for n in range(states):
                for i in range(count):
                    history[0, n, i] = kept[row, c, n, e + i]
            for t in range(begin, end):
                k = t - begin
                for i in range(count):
                    steps[k, i] = dt[row, t, e + i]
                    drives[k, i] = steps[k, i] * x[row, t, e + i]
                alive = zero if starts.size > 0 and starts[row, t] else one
                _advance_kept(steps[k], drives[k], rates, history[k], history[k + 1], decays[k], B[row, t], alive)
            for t in range(end - 1, begin - 1, -1):
                k = t - begin
                for i in range(count):
                    dy[i] = d_y[row, t, e + i]
                for i in range(WIDTH):
                    d_drive[i] = 0
                    d_step[i] = 0
                _reverse(
                    B[row, t], C[row, t], g, dy, steps[k], drives[k], decays[k], history[k], history[k + 1], rates,
                    d_drive, d_step, d_rates, d_B[part, row, t], d_C[part, row, t],
                )  # fmt: skip
                for i in range(count):
                    d_x[row, t, e + i] = d_drive[i] * steps[k, i] + D[e + i] * dy[i]
                    d_dt[row, t, e + i] = d_drive[i] * x[row, t, e + i] + d_step[i] * natural
                    d_D[row, e + i] += dy[i] * x[row, t, e + i]
        for i in range(count):
            for n in range(states):
                d_A[row, e + i, n] = d_rates[n, i]
                d_initial[row, e + i, n] = g[n, i]
