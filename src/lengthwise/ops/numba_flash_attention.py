"""A tile of attention, head by head: its matrix products, and between them passes that read and write it once.

The logits of one head stay in the second-level cache, and a row of them is short enough for the first, so that a pass
of several loops is one pass over memory.
"""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np

from lengthwise.ops.numba_math import exp, fused, kernel
from lengthwise.ops.numba_native import multiply
from lengthwise.ops.numba_softmax import LOWEST, absorb


@kernel
def _add(row, values, level):
    fused()
    for j in range(row.shape[0]):
        row[j] += values[j] + level


@kernel
def _shift(row, level):
    fused()
    for j in range(row.shape[0]):
        row[j] += level


@kernel
def _hide(row, seen, nothing):
    fused()
    for j in range(row.shape[0]):
        row[j] = row[j] if seen[j] else nothing


@kernel
def _grade(row, slopes, level, delta):
    """p = e^(s − level) and dS = p (dP − Δ), in place."""
    fused()
    zero = row.dtype.type(0)
    for j in range(row.shape[0]):
        x = row[j] - level
        p = exp(x)
        p = p if x > LOWEST else zero
        row[j] = p
        slopes[j] = p * (slopes[j] - delta)


@kernel
def _of(matrices, unit):
    """The matrix of a row and a head, where one may serve all."""
    b, h = unit
    return matrices[b if matrices.shape[0] > 1 else 0, h if matrices.shape[1] > 1 else 0]


@kernel
def _complete(row, unit, i, first, added):
    """Add a row's bias to its logits and hide what isn't seen. unit: row of the batch and head. i: the query in the
    tile, first: the first key of the row in the tile."""
    values, offset, strides, levels, mask = added
    (b, h), columns, level = unit, row.shape[0], row.dtype.type(0)
    if levels.size > 0:
        level = _of(levels, unit)[i]
    if values.size > 0:
        begin = offset + b * strides[0] + h * strides[1] + i * strides[2] + first * strides[3]
        if strides[3] == 1:
            _add(row, values[begin : begin + columns], level)
        else:
            _shift(row, values[begin] + level)
    if mask.size > 0:
        seen = mask[b if mask.shape[0] > 1 else 0, i]
        _hide(row, seen[first : first + columns], row.dtype.type(-np.inf))


@kernel
def _weigh_rows(scores, total, top, o, unit, block, added):
    """From the logits of a block to weights, and what was summed before brought to the new level."""
    for i in range(scores.shape[0]):
        _complete(scores[i], unit, block[0] + i, block[2], added)
        absorb(scores[i], total, top, o, i)


@kernel
def _grade_rows(scores, slopes, lse, delta, unit, block, added):
    """From the logits of a block to weights, and from the gradients of the weights to those of the logits."""
    for i in range(scores.shape[0]):
        _complete(scores[i], unit, block[0] + i, block[2], added)
        _grade(scores[i], slopes[i], lse[i], delta[i])


@kernel
def _matrix(room, block):
    """A matrix of the size of a block, at the beginning of a matrix that has room for it."""
    rows, columns = block[1] - block[0], block[3] - block[2]
    return room.reshape(room.size)[: rows * columns].reshape(rows, columns)


@kernel(entry=True)
def forward(gemm, c, q, k, v, o, total, top, room, place, heads, blocks, added, factors):
    """One tile of the forward pass, of all heads in turn.

    gemm: the address of BLAS's product. c: the scale. q: [units, queries, head_dim], a unit being one head of a row of
    the batch, the heads of a row side by side; k, v: [kv units, keys, channels]. o, total and top: of each query,
    are brought on by this tile. room: [rows, columns] for its logits. place: its first query and first key. heads: of a
    row.
    blocks: [rows of the batch or 1, blocks, 4], first and last query, first and last key of what is computed.
    added: (values, offset, strides, levels, mask), what a bias is read from, at offset + its indices · strides, or
    empty; levels: [rows or 1, heads or 1, queries of the tile], added to it, or empty; mask: [rows or 1, queries of the
    tile, keys of the tile] or empty. factors: U and W, [rows or 1, heads or 1, queries or keys, channels], whose
    product U Wᵀ is added too, or empty.
    """
    fused()
    zero, one = room.dtype.type(0), room.dtype.type(1)
    groups = q.shape[0] // k.shape[0]
    for u in range(q.shape[0]):
        for block in blocks[u // heads if len(blocks) > 1 else 0]:
            if block[2] >= block[3]:
                continue
            own, near = slice(place[0] + block[0], place[0] + block[1]), slice(place[1] + block[2], place[1] + block[3])
            scores = _matrix(room, block)
            unit = u // heads, u % heads
            multiply(gemm, c, q[u, own], k[u // groups, near].T, zero, scores)
            if factors[0].size > 0:
                multiply(gemm, one, _of(factors[0], unit)[own], _of(factors[1], unit)[near].T, one, scores)
            _weigh_rows(scores, total[u, own], top[u, own], o[u, own], unit, block, added)
            multiply(gemm, one, scores, v[u // groups, near], one, o[u, own])


@kernel(entry=True)
def backward(
    gemm,
    c,
    q,
    k,
    v,
    d_o,
    lse,
    delta,
    d_q,
    d_k,
    d_v,
    d_factors,
    room,
    slopes,
    whole,
    place,
    heads,
    blocks,
    added,
    factors,
):
    """One tile of the backward pass. As in `forward`; lse, delta: of each query. d_q, d_k, d_v and d_factors, those of
    U and W or empty: are added to. slopes: room for dS. whole: [units, rows, columns], where dS is wanted, or empty."""
    fused()
    zero, one = room.dtype.type(0), room.dtype.type(1)
    groups, hides = q.shape[0] // k.shape[0], added[4].size > 0
    for u in range(q.shape[0]):
        if hides and whole.size > 0:
            whole[u] = zero
        for block in blocks[u // heads if len(blocks) > 1 else 0]:
            if block[2] >= block[3]:
                continue
            own, near = slice(place[0] + block[0], place[0] + block[1]), slice(place[1] + block[2], place[1] + block[3])
            shared, unit, scores = u // groups, (u // heads, u % heads), _matrix(room, block)
            d_s = _matrix(slopes if hides or whole.size == 0 else whole[u], block)
            multiply(gemm, c, q[u, own], k[shared, near].T, zero, scores)
            if factors[0].size > 0:
                multiply(gemm, one, _of(factors[0], unit)[own], _of(factors[1], unit)[near].T, one, scores)
            multiply(gemm, one, d_o[u, own], v[shared, near].T, zero, d_s)
            _grade_rows(scores, d_s, lse[u, own], delta[u, own], unit, block, added)
            multiply(gemm, one, scores.T, d_o[u, own], one, d_v[shared, near])
            multiply(gemm, c, d_s, k[shared, near], one, d_q[u, own])
            multiply(gemm, c, d_s.T, q[u, own], one, d_k[shared, near])
            if d_factors[0].size > 0:
                multiply(gemm, one, d_s, _of(factors[1], unit)[near], one, _of(d_factors[0], unit)[own])
                multiply(gemm, one, d_s.T, _of(factors[0], unit)[own], one, _of(d_factors[1], unit)[near])
            if hides and whole.size > 0:
                whole[u, block[0] : block[1], block[2] : block[3]] = d_s
