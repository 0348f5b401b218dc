"""Fused kernels of a hidden layer with the GELU: a few tokens at a time, whose hidden units stay in the cache."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import math

from lengthwise.ops.numba_math import fused, kernel, sigmoid
from lengthwise.ops.numba_native import multiply

SLOPE, CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715
"""gelu(h) = h σ(SLOPE (h + CUBIC h³)), which is its form with a tanh."""


@kernel
def _gelu(row, offsets):
    """gelu(h + b), in place."""
    fused()
    slope, cubic, one = row.dtype.type(SLOPE), row.dtype.type(CUBIC), row.dtype.type(1)
    for c in range(row.shape[0]):
        h = row[c] + offsets[c]
        row[c] = h * sigmoid(slope * h * (one + cubic * h * h))


@kernel
def _grade(row, d_row, offsets, d_offsets):
    """gelu(h + b) in place of h, the gradient of h in place of its own, and added to that of b."""
    fused()
    slope, cubic, one = row.dtype.type(SLOPE), row.dtype.type(CUBIC), row.dtype.type(1)
    three = row.dtype.type(3)
    for c in range(row.shape[0]):
        h = row[c] + offsets[c]
        bent = cubic * h * h
        share = sigmoid(slope * h * (one + bent))
        y = h * share
        d_h = d_row[c] * (share + y * (one - share) * slope * (one + three * bent))
        row[c], d_row[c] = y, d_h
        d_offsets[c] += d_h


@kernel(entry=True)
def forward(gemm, x, up, up_bias, down, down_bias, y, room, begin, end):
    """y = W₂ gelu(W₁ x + b₁) + b₂ of the tokens from `begin` to `end`, as many at a time as `room` has rows.

    gemm: the address of BLAS's product. x: [tokens, width]. up, W₁: [hidden, width]. down, W₂: [outputs, hidden].
    y: [tokens, outputs]. room: [rows, hidden].
    """
    fused()
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for first in range(begin, end, room.shape[0]):
        last = min(first + room.shape[0], end)
        hidden = room[: last - first]
        multiply(gemm, one, x[first:last], up.T, zero, hidden)
        for i in range(last - first):
            _gelu(hidden[i], up_bias)
            y[first + i] = down_bias
        multiply(gemm, one, hidden, down.T, one, y[first:last])


@kernel(entry=True)
def backward(gemm, x, up, up_bias, down, d_y, d_x, d_up, d_up_bias, d_down, room, d_room, begin, end):
    """The gradients, hidden units being computed again. d_up, d_up_bias and d_down are added to; d_x is written."""
    fused()
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for first in range(begin, end, room.shape[0]):
        last = min(first + room.shape[0], end)
        hidden, d_hidden = room[: last - first], d_room[: last - first]
        multiply(gemm, one, x[first:last], up.T, zero, hidden)
        multiply(gemm, one, d_y[first:last], down, zero, d_hidden)
        for i in range(last - first):
            _grade(hidden[i], d_hidden[i], up_bias, d_up_bias)
        multiply(gemm, one, d_y[first:last].T, hidden, one, d_down)
        multiply(gemm, one, d_hidden.T, x[first:last], one, d_up)
        multiply(gemm, one, d_hidden, up, zero, d_x[first:last])
