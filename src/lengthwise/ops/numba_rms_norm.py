"""The fused kernel of the norm by the mean square."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import math

import numpy as np
from numba import carray

from lengthwise.ops.numba_math import fused, kernel
from lengthwise.ops.numba_native import compiled, pointer, real


@kernel(sums=True)
def _squares(row, total):
    """total + Σ_k row_k²."""
    for k in range(row.shape[0]):
        total += row[k] * row[k]
    return total


@kernel
def _norm(given, number):
    """y = w ⊙ x / √(mean of x² + ε). given: taken, parts, rows, dim, the bits of ε, and the addresses of x, w (0 for
    none) and y."""
    rows, dim, weighted, zero = given[2], given[3], given[6] != 0, number(0)
    x, y = carray(pointer(given[5], zero), (rows, dim)), carray(pointer(given[7], zero), (rows, dim))
    weight = carray(pointer(given[6], zero), dim)
    for i in range(rows):
        factor = number(1 / math.sqrt(_squares(x[i], zero) / dim + real(given[4])))
        for k in range(dim):
            y[i, k] = x[i, k] * factor
        if weighted:
            for k in range(dim):
                y[i, k] *= weight[k]


@compiled
def norm_float32(given):
    """`_norm` in float32."""
    fused()
    _norm(given, np.float32)


@compiled
def norm_float64(given):
    """`_norm` in float64."""
    fused()
    _norm(given, np.float64)
