"""The passes over a tile of logits that stand between its matrix products, each one reading and writing it once.

Rows of a tile are short enough for the first-level cache, so that a pass of several loops is one pass over memory.
"""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np

from lengthwise.ops.numba_math import exp, fused, kernel

LOWEST = np.float32(-87)
"""Below it e^x is no normal number in float32, and next to a row's largest term, e^0, nothing in float64 either."""


@kernel
def _add(row, values, level):
    fused()
    for j in range(row.shape[0]):
        row[j] += values[j] + level


@kernel
def _shift(row, level):
    fused()
    for j in range(row.shape[0]):
        row[j] += level


@kernel
def _hide(row, seen, nothing):
    fused()
    for j in range(row.shape[0]):
        row[j] = row[j] if seen[j] else nothing


@kernel(maxima=True)
def _highest(row, least):
    fused()
    for j in range(row.shape[0]):
        least = max(least, row[j])
    return least


@kernel(sums=True)
def _weigh(row, level):
    """p = e^(s − level), and its sum."""
    fused()
    total, zero = row.dtype.type(0), row.dtype.type(0)
    for j in range(row.shape[0]):
        x = row[j] - level
        p = exp(x)
        p = p if x > LOWEST else zero
        row[j] = p
        total += p
    return total


@kernel
def _scale(row, factor):
    fused()
    for j in range(row.shape[0]):
        row[j] *= factor


@kernel
def _grade(row, slopes, level, delta):
    """p = e^(s − level) and dS = p (dP − Δ), in place."""
    fused()
    zero = row.dtype.type(0)
    for j in range(row.shape[0]):
        x = row[j] - level
        p = exp(x)
        p = p if x > LOWEST else zero
        row[j] = p
        slopes[j] = p * (slopes[j] - delta)


@kernel
def _complete(row, values, begin, step, level, mask, unit, i):
    """Add a row of the bias, [begin, begin + columns) of `values` or one number for all, and hide what isn't seen."""
    if values.size > 0:
        if step == 1:
            _add(row, values[begin : begin + row.shape[0]], level)
        else:
            _shift(row, values[begin] + level)
    if mask.size > 0:
        _hide(row, mask[unit if mask.shape[0] > 1 else 0, i], row.dtype.type(-np.inf))


@kernel(entry=True)
def weigh(scores, values, offset, strides, levels, mask, highest, total, o, heads, first):
    """From logits to weights, and what was summed before brought to the new level.

    scores: [units, queries, keys], a unit being one head of one row of the batch, numbered from `first` with the heads
    of a row side by side. values: what a bias is read from, at offset + its indices · strides, or empty; levels:
    [rows or 1, heads or 1, queries], added to it, or empty. mask: [rows or 1, queries, keys] or empty. highest, total:
    [units, queries]. o: [units, queries, channels].
    """
    fused()
    zero = scores.dtype.type(0)
    nothing = scores.dtype.type(-np.inf)
    for u in range(scores.shape[0]):
        b, h = (first + u) // heads, (first + u) % heads
        for i in range(scores.shape[1]):
            row, level = scores[u, i], zero
            if levels.size > 0:
                level = levels[b if levels.shape[0] > 1 else 0, h if levels.shape[1] > 1 else 0, i]
            begin = offset + b * strides[0] + h * strides[1] + i * strides[2]
            _complete(row, values, begin, strides[3], level, mask, b, i)
            before = highest[u, i]
            now = _highest(row, before)
            if now == nothing:
                for j in range(row.shape[0]):
                    row[j] = zero
                continue
            summed = _weigh(row, now)
            if now > before:
                shrink = exp(before - now) if before > nothing else zero
                total[u, i] *= shrink
                _scale(o[u, i], shrink)
                highest[u, i] = now
            total[u, i] += summed


@kernel(entry=True)
def grade(scores, slopes, values, offset, strides, levels, mask, lse, delta, heads, first):
    """From logits to weights, and from the gradients of the weights to those of the logits. As in `weigh`; slopes:
    [units, queries, keys]; lse, delta: [units, queries]."""
    fused()
    zero = scores.dtype.type(0)
    for u in range(scores.shape[0]):
        b, h = (first + u) // heads, (first + u) % heads
        for i in range(scores.shape[1]):
            row, level = scores[u, i], zero
            if levels.size > 0:
                level = levels[b if levels.shape[0] > 1 else 0, h if levels.shape[1] > 1 else 0, i]
            begin = offset + b * strides[0] + h * strides[1] + i * strides[2]
            _complete(row, values, begin, strides[3], level, mask, b, i)
            _grade(row, slopes[u, i], lse[u, i], delta[u, i])


@kernel
def _gather(row, into):
    fused()
    for j in range(row.shape[0]):
        into[j] += row[j]


@kernel(entry=True)
def add_diagonals(d_logits, into):
    """Sums along the diagonals. d_logits: [batch, heads, queries, keys]. into: [heads or 1, queries + keys − 1], from
    the last query and first key on."""
    fused()
    _, heads, queries, keys = d_logits.shape
    for b in range(d_logits.shape[0]):
        for h in range(heads):
            for i in range(queries):
                begin = queries - 1 - i
                _gather(d_logits[b, h, i], into[h if into.shape[0] > 1 else 0, begin : begin + keys])
