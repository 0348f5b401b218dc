"""The fused kernel of a linear map of one vector."""

from __future__ import annotations

from lengthwise.ops.numba_math import kernel


@kernel(entry=True, sums=True)
def apply(weight, x, y, begin, end):
    """y_i = Σ_k w_ik x_k for the rows from `begin` to `end`."""
    for i in range(begin, end):
        total = x[0] - x[0]
        row = weight[i]
        for k in range(x.shape[0]):
            total += row[k] * x[k]
        y[i] = total
