"""The fused kernel of the gate of a linear unit."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np
from numba import carray

from lengthwise.ops.numba_math import fused, kernel, sigmoid
from lengthwise.ops.numba_native import compiled, pointer


@kernel
def _row(y, gate, x):
    """y = gate σ(gate) x."""
    fused()
    for c in range(y.shape[0]):
        y[c] = gate[c] * sigmoid(gate[c]) * x[c]


@kernel
def _gate(given, number):
    """y = silu(a) ⊙ b for rows (a, b). given: taken, parts, rows, width of y, and the addresses of (a, b) and y."""
    rows, width, zero = given[2], given[3], number(0)
    both, y = carray(pointer(given[4], zero), (rows, 2, width)), carray(pointer(given[5], zero), (rows, width))
    for i in range(rows):
        _row(y[i], both[i, 0], both[i, 1])


@compiled
def gate_float32(given):
    """`_gate` in float32."""
    fused()
    _gate(given, np.float32)


@compiled
def gate_float64(given):
    """`_gate` in float64."""
    fused()
    _gate(given, np.float64)
