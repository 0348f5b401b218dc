"""The fused kernel of sums along the diagonals of a matrix."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

from lengthwise.ops.numba_math import fused, kernel


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
