"""The kernels of the weighted average of RWKV: sums, weights and their running maximum stay in the cache.

A unit of work is one row of the batch and one block of channels. The forward keeps the state before the first token of
each chunk; the backward runs a chunk again from there and then goes through it in reverse. Of the two exponentials of a
common maximum one is always 1, so that each step takes one.
"""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np

from lengthwise.ops.numba_math import exp, fused, kernel

WIDTH = 128
"""Channels of a unit of work."""

CHUNK = 32
"""Tokens between two kept states."""

EMPTY = np.float32(-1e38)
"""The maximum of an empty state: finite, so that differences are numbers."""


@kernel
def _reset(a, b, p):
    fused()
    for i in range(a.shape[0]):
        a[i] = 0
        b[i] = 0
        p[i] = EMPTY


@kernel
def _clear(x):
    fused()
    for i in range(x.shape[0]):
        x[i] = 0


@kernel
def _copy(source, target):
    fused()
    for i in range(source.shape[0]):
        target[i] = source[i]


@kernel
def _average(k, v, u, a, b, p, y, denominator, high):
    """y and the denominator of what the token sees, over exp of the common maximum."""
    fused()
    one = k.dtype.type(1)
    for i in range(k.shape[0]):
        present = u[i] + k[i]
        small = exp(-abs(p[i] - present))
        past = p[i] >= present
        from_past, from_present = (one if past else small), (small if past else one)
        total = from_past * b[i] + from_present
        y[i] = (from_past * a[i] + from_present * v[i]) / total
        denominator[i] = total
        high[i] = p[i] if past else present


@kernel
def _advance(k, v, w, a, b, p, a_after, b_after, p_after):
    """The state after a token."""
    fused()
    one = k.dtype.type(1)
    for i in range(k.shape[0]):
        old = p[i] - w[i]
        small = exp(-abs(old - k[i]))
        past = old >= k[i]
        from_past, from_present = (one if past else small), (small if past else one)
        a_after[i] = from_past * a[i] + from_present * v[i]
        b_after[i] = from_past * b[i] + from_present
        p_after[i] = old if past else k[i]


@kernel(entry=True)
def forward(k, v, w, u, starts, state, y, denominator, high, kept, first, last):
    """k, v, y: [batch, length, channels]. w, u: [channels]. state: [batch, 3, channels], the initial one, which becomes
    the last. denominator, high: as y, or without rows where they aren't wanted. kept: [batch, chunks, 3, channels]."""
    fused()
    length, channels = k.shape[1], k.shape[2]
    blocks = (channels + WIDTH - 1) // WIDTH
    spare = np.zeros((2, WIDTH), k.dtype)
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * WIDTH
        end = min(channels, begin + WIDTH)
        a, b, p = state[row, 0, begin:end], state[row, 1, begin:end], state[row, 2, begin:end]
        decay, bonus = w[begin:end], u[begin:end]
        total, top = spare[0, : end - begin], spare[1, : end - begin]
        for t in range(length):
            if starts.size > 0 and starts[row, t]:
                _reset(a, b, p)
            if kept.shape[1] > 0 and t % CHUNK == 0:
                _copy(a, kept[row, t // CHUNK, 0, begin:end])
                _copy(b, kept[row, t // CHUNK, 1, begin:end])
                _copy(p, kept[row, t // CHUNK, 2, begin:end])
            if denominator.shape[0] > 0:
                total, top = denominator[row, t, begin:end], high[row, t, begin:end]
            keys, values = k[row, t, begin:end], v[row, t, begin:end]
            _average(keys, values, bonus, a, b, p, y[row, t, begin:end], total, top)
            _advance(keys, values, decay, a, b, p, a, b, p)


@kernel
def _reverse_average(k, v, u, y, denominator, high, d_y, d_log, d_present, d_v, n, m):
    """n, m: the gradients of numerator and denominator over exp(high) that come from this token's output; those through
    the present key and value are written."""
    fused()
    for i in range(k.shape[0]):
        share = exp(u[i] + k[i] - high[i])
        to_n = d_y[i] / denominator[i]
        to_m = (d_log[i] - d_y[i] * y[i]) / denominator[i]
        d_v[i] = share * to_n
        d_present[i] = share * (v[i] * to_n + to_m)
        n[i] = to_n
        m[i] = to_m


@kernel
def _reverse_advance(k, v, w, a, b, p, g_a, g_b, g_p, g_top, d_present, d_k, d_v, d_w, d_u):
    """g_a, g_b exp(g_top): the gradients of numerator and denominator after the token; g_p: that of the maximum."""
    fused()
    zero = k.dtype.type(0)
    for i in range(k.shape[0]):
        share = exp(min(k[i] + g_top[i], zero))
        lasts = exp(min(p[i] - w[i] + g_top[i], zero))
        past = p[i] - w[i] >= k[i]
        d_v[i] += share * g_a[i]
        d_k[i] = d_present[i] + share * (v[i] * g_a[i] + g_b[i]) + (zero if past else g_p[i])
        d_w[i] -= lasts * (a[i] * g_a[i] + b[i] * g_b[i]) + (g_p[i] if past else zero)
        d_u[i] += d_present[i]
        g_p[i] = g_p[i] if past else zero


@kernel
def _add_gradient(n, m, high, w, g_a, g_b, g_top):
    """The gradients of numerator and denominator before a token: from its output and, decayed, from after it."""
    fused()
    one = n.dtype.type(1)
    for i in range(w.shape[0]):
        now, later = -high[i], g_top[i] - w[i]
        small = exp(-abs(now - later))
        sooner = now >= later
        from_now, from_later = (one if sooner else small), (small if sooner else one)
        g_a[i] = from_now * n[i] + from_later * g_a[i]
        g_b[i] = from_now * m[i] + from_later * g_b[i]
        g_top[i] = now if sooner else later


@kernel
def _begin_gradient(d_state, state, begin, end, g):
    """a = A exp(-p): what moves p at a fixed a moves A and B."""
    for i in range(end - begin):
        c = begin + i
        g[0, i] = d_state[0, c]
        g[1, i] = d_state[1, c]
        g[2, i] = d_state[2, c] - d_state[0, c] * state[0, c] - d_state[1, c] * state[1, c]
        g[3, i] = -state[2, c]


@kernel
def _end_gradient(g, initial, begin, end, d_initial):
    for i in range(end - begin):
        c = begin + i
        scale = exp(min(initial[2, c] + g[3, i], g.dtype.type(0)))
        d_initial[0, c] = scale * g[0, i]
        d_initial[1, c] = scale * g[1, i]
        d_initial[2, c] = g[2, i] + scale * (initial[0, c] * g[0, i] + initial[1, c] * g[1, i])


@kernel
def _run_again(k, v, w, u, starts, row, t, count, begin, end, states, averages):
    """The states before and after `count` tokens from t on, beginning with the first of `states`, and what they see."""
    for c in range(count):
        before, after, seen = states[c], states[c + 1], averages[c]
        if starts.size > 0 and starts[row, t + c]:
            _reset(before[0], before[1], before[2])
        keys, values = k[row, t + c, begin:end], v[row, t + c, begin:end]
        _average(keys, values, u, before[0], before[1], before[2], seen[0], seen[1], seen[2])
        _advance(keys, values, w, before[0], before[1], before[2], after[0], after[1], after[2])


@kernel(entry=True)
def backward(k, v, w, u, starts, initial, final, kept, d_y, d_log, d_final, d_k, d_v, d_w, d_u, d_initial, first, last):
    """d_log: the gradient of log denominator + high. d_w, d_u: [batch, channels], zero before."""
    fused()
    length, channels = k.shape[1], k.shape[2]
    blocks = (channels + WIDTH - 1) // WIDTH
    states, averages = np.zeros((CHUNK + 1, 3, WIDTH), k.dtype), np.zeros((CHUNK, 3, WIDTH), k.dtype)
    g, own = np.zeros((4, WIDTH), k.dtype), np.zeros((3, WIDTH), k.dtype)
    for unit in range(first, last):
        row, begin = unit // blocks, (unit % blocks) * WIDTH
        end = min(channels, begin + WIDTH)
        decay, bonus = w[begin:end], u[begin:end]
        to_w, to_u = d_w[row, begin:end], d_u[row, begin:end]
        _begin_gradient(d_final[row], final[row], begin, end, g)
        for chunk in range(kept.shape[1] - 1, -1, -1):
            for part in range(3):
                _copy(kept[row, chunk, part, begin:end], states[0, part])
            count = min(length - chunk * CHUNK, CHUNK)
            _run_again(k, v, decay, bonus, starts, row, chunk * CHUNK, count, begin, end, states, averages)
            for c in range(count - 1, -1, -1):
                t, before, seen = chunk * CHUNK + c, states[c], averages[c]
                keys, values = k[row, t, begin:end], v[row, t, begin:end]
                to_k, to_v = d_k[row, t, begin:end], d_v[row, t, begin:end]
                given, log = d_y[row, t, begin:end], d_log[row, t, begin:end]
                _reverse_average(
                    keys, values, bonus, seen[0], seen[1], seen[2], given, log, own[2], to_v, own[0], own[1]
                )
                _reverse_advance(
                    keys, values, decay, before[0], before[1], before[2], g[0], g[1], g[2], g[3],
                    own[2], to_k, to_v, to_w, to_u,
                )  # fmt: skip
                _add_gradient(own[0], own[1], seen[2], decay, g[0], g[1], g[3])
                if starts.size > 0 and starts[row, t]:
                    _reset(g[0], g[1], g[3])
                    _clear(g[2])
        _end_gradient(g, initial[row], begin, end, d_initial[row])
