"""Passes over a row of logits, of which kernels of attention make their softmax."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np

from lengthwise.ops.numba_math import exp, fused, kernel

LOWEST = np.float32(-87)
"""Below it e^x is no normal number in float32, and next to a row's largest term, e^0, nothing in float64 either."""


@kernel(maxima=True)
def highest(row, least):
    """The largest number of a row, and `least` where all are smaller."""
    fused()
    for j in range(row.shape[0]):
        least = max(least, row[j])
    return least


@kernel(sums=True)
def weigh(row, level):
    """p = e^(s − level), in place, and its sum."""
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
def scale(row, factor):
    """A row times a number, in place."""
    fused()
    for j in range(row.shape[0]):
        row[j] *= factor


@kernel
def absorb(row, total, top, o, i):
    """From a row of logits to weights, in place, and what place i has summed before brought to the new level: the total
    of its weights, its largest logit `top`, and o, to which the caller adds what the weights read."""
    zero, nothing, before = row.dtype.type(0), row.dtype.type(-np.inf), top[i]
    now = highest(row, before)
    if now == nothing:
        for j in range(row.shape[0]):
            row[j] = zero
        return
    summed = weigh(row, now)
    if now > before:
        shrink = exp(before - now) if before > nothing else zero
        total[i] *= shrink
        scale(o[i], shrink)
        top[i] = now
    total[i] += summed
