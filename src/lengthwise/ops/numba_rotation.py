"""The fused kernel that turns the vectors of one token."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np
from numba import carray

from lengthwise.ops.numba_math import fused, kernel
from lengthwise.ops.numba_native import compiled, pointer


@kernel
def _turn_halves(y, first, second, cos, sin, half):
    """Pairs of channels i and i + half."""
    fused()
    for c in range(half):
        y[c] = first[c] * cos[c] + second[c] * sin[c]
        y[half + c] = second[c] * cos[half + c] + first[c] * sin[half + c]


@kernel
def _turn_neighbours(y, x, cos, sin, half):
    """Pairs of channels 2i and 2i + 1."""
    fused()
    for c in range(half):
        y[2 * c] = x[2 * c] * cos[2 * c] + x[2 * c + 1] * sin[2 * c]
        y[2 * c + 1] = x[2 * c + 1] * cos[2 * c + 1] + x[2 * c] * sin[2 * c + 1]


@kernel
def _rotate(given, number):
    """y = x ⊙ cos + partner(x) ⊙ sin for the heads of all rows, the channels that aren't turned as they are.

    given: taken, parts, rows, width, turned channels, 1 where neighbours are pairs, the addresses of cos and sin, and
    until the end, which has 0 there, for each tensor its heads, the address of x and its strides of rows and heads in
    bytes, and the address of y.
    """
    rows, width, turned, zero, at = given[2], given[3], given[4], number(0), 8
    cos, sin = carray(pointer(given[6], zero), turned), carray(pointer(given[7], zero), turned)
    while given[at] != 0:
        heads, address, row, head = given[at], given[at + 1], given[at + 2], given[at + 3]
        y = carray(pointer(given[at + 4], zero), (rows, heads, width))
        for b in range(rows):
            for h in range(heads):
                x = carray(pointer(address + b * row + h * head, zero), width)
                if given[5] == 1:
                    _turn_neighbours(y[b, h], x, cos, sin, turned // 2)
                else:
                    _turn_halves(y[b, h], x[: turned // 2], x[turned // 2 :], cos, sin, turned // 2)
                for c in range(turned, width):
                    y[b, h, c] = x[c]
        at += 5


@compiled
def rotate_float32(given):
    """`_rotate` in float32."""
    fused()
    _rotate(given, np.float32)


@compiled
def rotate_float64(given):
    """`_rotate` in float64."""
    fused()
    _rotate(given, np.float64)
