"""The moving average's kernels: the averages of 16 channels stay in the first-level cache and never touch memory.

The backward keeps nothing of the forward. With s_t = ∂h_t/∂q, which follows s_t = q s_{t−1} + h_{t−1}, the gradients of
q and w are sums that a second pass in the same direction gathers,

    ∂w = conj(Σ_t dy_t h_t)          ∂q = conj(w Σ_t dy_t s_t) + d_final conj(s_L)

and that of x is one in reverse: u_t = q u_{t+1} + w dy_t, dx_t = Re Σ_n u_t.
"""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np

from lengthwise.ops.numba_ema_steps import STEP, WIDTH, advance_all, advance_all_real, gather_all, reverse_all
from lengthwise.ops.numba_math import fused, kernel


@kernel
def _load(block, source, begin, count):
    """block[n, i] = source[n, begin + i] for i < count, else 0."""
    for n in range(block.shape[0]):
        for i in range(WIDTH):
            block[n, i] = 0
        for i in range(count):
            block[n, i] = source[n, begin + i]


@kernel
def _store(block, target, begin, count):
    for n in range(block.shape[0]):
        for i in range(count):
            target[n, begin + i] = block[n, i]


@kernel
def _clear(block):
    fused()
    for n in range(block.shape[0]):
        for i in range(WIDTH):
            block[n, i] = 0


@kernel
def _load_all(block, source, begin, count):
    for plane in range(block.shape[0]):
        _load(block[plane], source[plane], begin, count)


@kernel
def _store_all(block, target, begin, count):
    for plane in range(block.shape[0]):
        _store(block[plane], target[plane], begin, count)


@kernel
def _clear_all(block):
    for plane in range(block.shape[0]):
        _clear(block[plane])


@kernel
def _fetch(tokens, source):
    """The tokens of `source`, [at most STEP, at most WIDTH], into `tokens`, whose other channels stay 0."""
    for k in range(source.shape[0]):
        row, given = tokens[k], source[k]
        for i in range(given.shape[0]):
            row[i] = given[i]


@kernel
def _put(target, tokens):
    for k in range(target.shape[0]):
        row, given = target[k], tokens[k]
        for i in range(row.shape[0]):
            row[i] = given[i]


@kernel
def _together(starts, row, t, end):
    """How many tokens from t on can be run together: those before `end` of which none but the first begins anything."""
    count = min(STEP, end - t)
    if starts.size > 0:
        for k in range(1, count):
            if starts[row, t + k]:
                return k
    return count


@kernel
def _together_before(starts, row, t):
    """How many tokens before t can be run together: those of which none but the first begins anything."""
    count = min(STEP, t)
    if starts.size > 0:
        for k in range(1, count):
            if starts[row, t - k]:
                return k
    return count


@kernel(entry=True)
def forward(x, q, w, initial, starts, y, final, first, last):
    """Units `first` to `last` of batch times blocks of channels. Writes y and final.

    x, y: [batch, length, channels]. q, w: [planes, states, channels], of real numbers one plane, of complex ones two.
    initial, final: [planes, batch, states, channels]. starts: [batch, length] or empty.
    """
    fused()
    length, channels, planes, states = x.shape[1], x.shape[2], q.shape[0], q.shape[1]
    blocks = (channels + WIDTH - 1) // WIDTH
    rates, weights = np.zeros((planes, states, WIDTH), x.dtype), np.zeros((planes, states, WIDTH), x.dtype)
    h = np.zeros((planes, states, WIDTH), x.dtype)
    tokens, out = np.zeros((STEP, WIDTH), x.dtype), np.zeros((STEP, WIDTH), x.dtype)
    for unit in range(first, last):
        row, c = unit // blocks, (unit % blocks) * WIDTH
        count = min(WIDTH, channels - c)
        _clear(tokens)
        _load_all(rates, q, c, count)
        _load_all(weights, w, c, count)
        _load_all(h, initial[:, row], c, count)
        t = 0
        while t < length:
            if starts.size > 0 and starts[row, t]:
                _clear_all(h)
            steps = _together(starts, row, t, length)
            _fetch(tokens, x[row, t : t + steps, c : c + count])
            _clear(out)
            if planes == 2:
                advance_all(tokens, out, rates, weights, h, steps)
            else:
                advance_all_real(tokens, out, rates[0], weights[0], h[0], steps)
            _put(y[row, t : t + steps, c : c + count], out)
            t += steps
        _store_all(h, final[:, row], c, count)


@kernel
def _finish(q, w, s, to_w, to_q, d_final):
    """The gradients of w and q in place of the sums, given the derivative and the gradient of the last h."""
    last = q.shape[0] - 1
    for n in range(q.shape[1]):
        for i in range(WIDTH):
            if last == 0:
                to_q[0, n, i] = w[0, n, i] * to_q[0, n, i] + d_final[0, n, i] * s[0, n, i]
            else:
                a, b, f, g = to_q[0, n, i], to_q[last, n, i], d_final[0, n, i], d_final[last, n, i]
                real = w[0, n, i] * a - w[last, n, i] * b
                imaginary = w[0, n, i] * b + w[last, n, i] * a
                to_q[0, n, i] = real + f * s[0, n, i] + g * s[last, n, i]
                to_q[last, n, i] = g * s[0, n, i] - f * s[last, n, i] - imaginary
                to_w[last, n, i] = -to_w[last, n, i]


@kernel
def _conjugate(block):
    for n in range(block.shape[1]):
        for i in range(WIDTH):
            block[block.shape[0] - 1, n, i] = -block[block.shape[0] - 1, n, i]


@kernel(entry=True)
def backward(d_y, d_final, x, q, w, initial, starts, d_x, d_q, d_w, d_initial, first, last):
    """Gradients for units `first` to `last`. d_q and d_w have a slice for each row of the batch."""
    fused()
    length, channels = x.shape[1], x.shape[2]
    blocks, shape, dtype = (channels + WIDTH - 1) // WIDTH, (q.shape[0], q.shape[1], WIDTH), x.dtype
    rates, weights, h, s = (
        np.zeros(shape, dtype),
        np.zeros(shape, dtype),
        np.zeros(shape, dtype),
        np.zeros(shape, dtype),
    )
    to_w, to_q = np.zeros(shape, dtype), np.zeros(shape, dtype)
    tokens, slopes = np.zeros((STEP, WIDTH), dtype), np.zeros((STEP, WIDTH), dtype)
    for unit in range(first, last):
        row, c = unit // blocks, (unit % blocks) * WIDTH
        count = min(WIDTH, channels - c)
        _load_all(rates, q, c, count)
        _load_all(weights, w, c, count)
        _load_all(h, initial[:, row], c, count)
        for block in (s, to_w, to_q):
            _clear_all(block)
        _clear(tokens)
        _clear(slopes)
        t = 0
        while t < length:
            if starts.size > 0 and starts[row, t]:
                _clear_all(h)
                _clear_all(s)
            steps = _together(starts, row, t, length)
            _fetch(tokens, x[row, t : t + steps, c : c + count])
            _fetch(slopes, d_y[row, t : t + steps, c : c + count])
            gather_all(tokens, slopes, rates, h, s, to_w, to_q, steps)
            t += steps
        _load_all(h, d_final[:, row], c, count)
        _finish(rates, weights, s, to_w, to_q, h)
        _store_all(to_q, d_q[:, row], c, count)
        _store_all(to_w, d_w[:, row], c, count)
        if q.shape[0] == 2:
            _conjugate(h)
        while t > 0:
            steps = _together_before(starts, row, t)
            t -= steps
            _fetch(slopes, d_y[row, t : t + steps, c : c + count])
            _clear(tokens)
            reverse_all(slopes, tokens, rates, weights, h, steps)
            _put(d_x[row, t : t + steps, c : c + count], tokens)
            if starts.size > 0 and starts[row, t]:
                _clear_all(h)
        if q.shape[0] == 2:
            _conjugate(h)
        _store_all(h, d_initial[:, row], c, count)
