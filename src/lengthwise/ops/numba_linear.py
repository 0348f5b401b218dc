"""The fused kernel of a linear map of one vector."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np
from numba import carray

from lengthwise.ops.numba_math import fused, kernel
from lengthwise.ops.numba_native import compiled, pointer, take


@kernel(sums=True)
def _product(row, x, total):
    """total + Σ_k row_k x_k."""
    for k in range(x.shape[0]):
        total += row[k] * x[k]
    return total


@kernel
def _apply(given, number):
    """y_i = Σ_k w_ik x_k + b_i for maps of the same x, whose y lie one after the other.

    given: taken, parts, rows of all maps, columns, the addresses of x and y, and for each map its rows and the
    addresses of w and b (0 for none).
    """
    parts, rows, columns, zero = given[1], given[2], given[3], number(0)
    x, y = carray(pointer(given[4], zero), columns), carray(pointer(given[5], zero), rows)
    while True:
        part = take(given)
        if part >= parts:
            break
        first, last, before, at = rows * part // parts, rows * (part + 1) // parts, 0, 6
        while before < last:
            own, biased = given[at], given[at + 2] != 0
            weight = carray(pointer(given[at + 1], zero), (own, columns))
            bias = carray(pointer(given[at + 2], zero), own)
            for i in range(max(0, first - before), min(own, last - before)):
                y[before + i] = _product(weight[i], x, bias[i] if biased else zero)
            before, at = before + own, at + 3


@compiled
def apply_float32(given):
    """`_apply` in float32."""
    fused()
    _apply(given, np.float32)


@compiled
def apply_float64(given):
    """`_apply` in float64."""
    fused()
    _apply(given, np.float64)
