"""Scores inside a chunk, weighted by one decay per head: exponential, mask and product in one pass.

Only the triangle that a query sees is read. A unit of work is a query of a chunk together with the one at the same
distance from the chunk's end, so that all units are of the same size.
"""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

from lengthwise.ops.numba_math import exp, fused, kernel

LOWEST = -87
"""A log decay under which nothing is left: the exponential of single precision ends there."""


@kernel
def _clear(x):
    fused()
    for j in range(x.shape[0]):
        x[j] = 0


@kernel
def _weight(end, begin, like):
    """exp(end - begin). The difference is taken in float64 (see `HeadDecay.of`)."""
    log = like.dtype.type(end - begin)
    return exp(log) if log > like.dtype.type(LOWEST) else like.dtype.type(0)


@kernel
def _spread(end, total, raw, scores):
    fused()
    for j in range(raw.shape[0]):
        scores[j] = _weight(end, total[j], raw) * raw[j]


@kernel
def _gather(end, total, raw, grad, grad_raw):
    fused()
    for j in range(raw.shape[0]):
        weight = _weight(end, total[j], raw)
        grad_raw[j] += weight * grad[j]
        grad[j] = weight * raw[j]


@kernel
def _spread_query(total, raw, scores, i):
    seen = i + 1
    for d in range(total.shape[0]):
        _spread(total[d, i], total[d, :seen], raw[i, :seen], scores[d, i, :seen])
        _clear(scores[d, i, seen:])


@kernel
def _gather_query(total, raw, grad, grad_raw, i):
    seen = i + 1
    _clear(grad_raw[i])
    for d in range(total.shape[0]):
        _gather(total[d, i], total[d, :seen], raw[i, :seen], grad[d, i, :seen], grad_raw[i, :seen])
        _clear(grad[d, i, seen:])


@kernel(entry=True)
def spread(total, raw, scores, first, last):
    """scores_ij = exp(total_i - total_j) raw_ij for j <= i, else 0.

    total: [chunks, decays, chunk], float64; raw: [chunks, chunk, chunk]; scores: [chunks, decays, chunk, chunk].
    """
    chunk = raw.shape[1]
    pairs = (chunk + 1) // 2
    for unit in range(first, last):
        n, i = unit // pairs, unit % pairs
        _spread_query(total[n], raw[n], scores[n], i)
        if chunk - 1 - i != i:
            _spread_query(total[n], raw[n], scores[n], chunk - 1 - i)


@kernel(entry=True)
def gather(total, raw, grad, grad_raw, first, last):
    """The gradient of raw from that of the scores, whose place the scores take."""
    chunk = raw.shape[1]
    pairs = (chunk + 1) // 2
    for unit in range(first, last):
        n, i = unit // pairs, unit % pairs
        _gather_query(total[n], raw[n], grad[n], grad_raw[n], i)
        if chunk - 1 - i != i:
            _gather_query(total[n], raw[n], grad[n], grad_raw[n], chunk - 1 - i)
