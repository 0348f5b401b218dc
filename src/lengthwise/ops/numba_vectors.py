"""What kernels do with two vectors."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

from lengthwise.ops.numba_math import fused, kernel


@kernel(sums=True)
def dot(a, b):
    """Σ_c a_c b_c."""
    fused()
    total = a.dtype.type(0)
    for c in range(a.shape[0]):
        total += a[c] * b[c]
    return total


@kernel
def add_scaled(into, factor, x):
    """into ← into + factor x."""
    fused()
    for c in range(into.shape[0]):
        into[c] += factor * x[c]
