"""Softmax attention of each query to a few keys that it lists, by their numbers.

    o_i = Σ_j p_ij v_{s_ij}      p_ij = softmax over the j that aren't hidden, of q_i · k_{s_ij} / √d

For lists of a handful: written with PyTorch's operations, each key is copied for every query that lists it, and its
gradient too.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lengthwise.ops import fused, memory
from lengthwise.ops.backend import resolve


def listed_attention_reference(
    q: Float[Tensor, "queries heads head_dim"],
    kv: Float[Tensor, "keys 2 heads head_dim"],
    listed: Int[Tensor, "queries count"],
    hidden: Bool[Tensor, "queries count"],
) -> Float[Tensor, "queries heads head_dim"]:
    """The definition."""
    k, v = functional.embedding(listed, kv.flatten(1)).unflatten(-1, kv.shape[1:]).unbind(2)
    # As sums of products: matrix products of so many vectors with so few keys each take many times as long.
    logits = (q[:, None] * k).sum(-1) * q.shape[-1] ** -0.5
    p = logits.masked_fill(hidden[..., None], -torch.inf).softmax(1)
    return (p[..., None] * v).sum(1)


def listed_attention(
    q: Float[Tensor, "queries heads head_dim"],
    kv: Float[Tensor, "keys 2 heads head_dim"],
    listed: Int[Tensor, "queries count"],
    hidden: Bool[Tensor, "queries count"],
    *,
    backend: str = "auto",
) -> Float[Tensor, "queries heads head_dim"]:
    """o of every query.

    kv: keys and values side by side, as one linear map gives them. listed: s, of which a query needs one at least that
    isn't hidden. backend: "numba", on the processor in float32 or float64, whose gradient can't be differentiated
    again; or "reference".
    """
    form = "reference" if torch.compiler.is_compiling() else resolve(backend, ("numba", "reference"), q, kv)
    if form == "reference" or q.dtype not in fused.REAL or kv.dtype != q.dtype:
        return listed_attention_reference(q, kv, listed, hidden)
    q = q * q.shape[-1] ** -0.5
    if fused.needs_graph(q, kv):
        return ListedAttention.apply(q, kv, listed, hidden)
    return _forward(q, kv, listed, hidden)


class ListedAttention(torch.autograd.Function):
    """The kernels. Keeps what it is given alone. q carries the scale."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, listed: Tensor, hidden: Tensor) -> Tensor:  # type: ignore[override]
        """o."""
        ctx.save_for_backward(q, kv, listed, hidden)
        return _forward(q, kv, listed, hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of q and kv."""
        kernels: Any = import_module("lengthwise.ops.numba_listed_attention")
        q, kv, listed, hidden = ctx.saved_tensors
        d_q, parts = memory.rows(*q.shape, dtype=q.dtype), _parts(q, listed)
        # Queries of several threads may list the same key.
        sums = [memory.rows(*kv.shape, dtype=kv.dtype).zero_() for _ in parts]
        given = fused.arrays(q, kv, listed, hidden, d_o, d_q)
        fused.run(
            [partial(kernels.backward, *given, *fused.arrays(d), *part) for d, part in zip(sums, parts, strict=True)]
        )
        for more in sums[1:]:
            sums[0] += more
        return d_q, sums[0], None, None


def _forward(q: Tensor, kv: Tensor, listed: Tensor, hidden: Tensor) -> Tensor:
    kernels: Any = import_module("lengthwise.ops.numba_listed_attention")
    o = memory.rows(*q.shape, dtype=q.dtype)
    given = fused.arrays(q, kv, listed, hidden, o)
    fused.run([partial(kernels.forward, *given, *part) for part in _parts(q, listed)])
    return o


def _parts(q: Tensor, listed: Tensor) -> list[tuple[int, int]]:
    """The queries, divided among the threads."""
    return fused.parts(len(q), q.numel() * listed.shape[1])
