"""Fused kernels of attention to a few listed keys of each query."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np

from lengthwise.ops.numba_math import exp, fused, kernel
from lengthwise.ops.numba_vectors import add_scaled, dot


@kernel
def _weigh(q, kv, listed, hidden, head, p):
    """The weights of one head of a query, whose scale it carries."""
    zero, highest, total = q.dtype.type(0), q.dtype.type(-np.inf), q.dtype.type(0)
    for j in range(listed.shape[0]):
        if not hidden[j]:
            p[j] = dot(q, kv[listed[j], 0, head])
            highest = max(highest, p[j])
    for j in range(listed.shape[0]):
        p[j] = zero if hidden[j] else exp(p[j] - highest)
        total += p[j]
    for j in range(listed.shape[0]):
        p[j] /= total


@kernel(entry=True)
def forward(q, kv, listed, hidden, o, begin, end):
    """o of the queries from `begin` to `end`.

    q, o: [queries, heads, head_dim], q with its scale. kv: [keys, 2, heads, head_dim].
    listed, hidden: [queries, count].
    """
    fused()
    p = np.empty(listed.shape[1], q.dtype)
    for i in range(begin, end):
        for head in range(q.shape[1]):
            _weigh(q[i, head], kv, listed[i], hidden[i], head, p)
            o[i, head] = q.dtype.type(0)
            for j in range(listed.shape[1]):
                if not hidden[i, j]:
                    add_scaled(o[i, head], p[j], kv[listed[i, j], 1, head])


@kernel(entry=True)
def backward(q, kv, listed, hidden, d_o, d_q, d_kv, begin, end):
    """The gradients: d_q is written, d_kv is added to."""
    fused()
    p, d_p = np.empty(listed.shape[1], q.dtype), np.empty(listed.shape[1], q.dtype)
    for i in range(begin, end):
        for head in range(q.shape[1]):
            _weigh(q[i, head], kv, listed[i], hidden[i], head, p)
            mean = q.dtype.type(0)
            for j in range(listed.shape[1]):
                if not hidden[i, j]:
                    d_p[j] = dot(d_o[i, head], kv[listed[i, j], 1, head])
                    mean += p[j] * d_p[j]
            d_q[i, head] = q.dtype.type(0)
            for j in range(listed.shape[1]):
                if not hidden[i, j]:
                    d_logit = p[j] * (d_p[j] - mean)
                    add_scaled(d_q[i, head], d_logit, kv[listed[i, j], 0, head])
                    add_scaled(d_kv[listed[i, j], 0, head], d_logit, q[i, head])
                    add_scaled(d_kv[listed[i, j], 1, head], p[j], d_o[i, head])
