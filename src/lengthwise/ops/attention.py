"""Softmax attention of many queries to many keys, for any pattern of who sees whom.

    o_i = Σ_j p_ij v_j      p_ij = softmax over the keys j that query i sees, of  c q_i · k_j + b_ij

Queries are the last of the keys: query i has the place of key i + keys − queries. Query head h uses key-value head
⌊h · kv_heads / heads⌋. A query that sees nothing gives 0. How a call is executed:

    everything or causal                        scaled_dot_product_attention, without a mask where it needs none
    a window, with or without first keys        blocks of queries with the key blocks around them: O(L · window)
    documents                                   documents of equal length together, each as a row of its own
    small enough for its mask to be written     scaled_dot_product_attention with the mask
    all else (a bias on long rows, say)         tiles that recompute in the backward pass: `flash_attention`

None of them is approximate, and none but the small one holds a [queries, keys] matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.ops.backend import resolve
from lengthwise.ops.dense_attention import by_rows, dense, written_bias, written_mask
from lengthwise.ops.document_attention import document_attention, group_documents
from lengthwise.ops.flash_attention import Bias, flash_attention
from lengthwise.ops.pattern import Pattern, without_documents
from lengthwise.ops.patterns import causal
from lengthwise.ops.visibility import Visibility, aligned
from lengthwise.ops.window_attention import window_attention, window_fits

WRITTEN = 2**22
"""The most numbers that a mask or a bias may have to be written out: 16 MiB in float32."""


def attention_reference(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    *,
    pattern: Pattern | None = None,
    bias: Bias | None = None,
    scale: float | None = None,
    query_documents: Int[Tensor, "#batch queries"] | None = None,
    key_documents: Int[Tensor, "#batch keys"] | None = None,
    positions: Int[Tensor, "#batch keys"] | None = None,
) -> Float[Tensor, "batch queries heads value_dim"]:
    """The definition: the matrix of logits written out, masked and normalised."""
    pattern = causal() if pattern is None else pattern
    visibility = aligned(pattern, q.shape[1], k.shape[1], query_documents, key_documents, positions, q.device)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    logits = torch.einsum("bihd,bjhd->bhij", q * scale, k)
    added = written_bias(bias, q.shape[1], k.shape[1], q.device)
    logits = logits if added is None else logits + added
    seen = visibility.mask()[:, None]
    p = logits.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)
    return torch.einsum("bhij,bjhd->bihd", p.to(v.dtype), v)


def attention(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    *,
    pattern: Pattern | None = None,
    bias: Bias | None = None,
    scale: float | None = None,
    query_documents: Int[Tensor, "#batch queries"] | None = None,
    key_documents: Int[Tensor, "#batch keys"] | None = None,
    positions: Int[Tensor, "#batch keys"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "batch queries heads value_dim"]:
    """o for every query.

    pattern: who sees whom, causal by default. bias: a tensor [batch or 1, heads or 1, queries, keys], or a function
    that gives that part of it for which it gets the indices of queries and keys (see `flash_attention.Bias`).
    scale: c, 1/√head_dim by default.
    query_documents, key_documents: numbers of documents, each one run of its row; other documents are hidden.
    positions: the places of the keys in their documents, where keys don't follow each other.
    backend: "reference", "torch", or "tiled" for the recomputing tiles whatever the pattern.

    Raises InputError for heads that don't divide and documents that are needed and missing.
    """
    if q.shape[2] % k.shape[2]:
        raise InputError(f"kv_heads must divide heads: got kv_heads={k.shape[2]} and heads={q.shape[2]}")
    pattern = causal() if pattern is None else pattern
    form = resolve(backend, ("torch", "tiled", "reference"), q, k, v)
    where: dict[str, Any] = {
        "query_documents": query_documents,
        "key_documents": key_documents,
        "positions": positions,
    }
    if form == "reference":
        return attention_reference(q, k, v, pattern=pattern, bias=bias, scale=scale, **where)
    if form == "torch":
        visibility = aligned(pattern, q.shape[1], k.shape[1], **where, device=q.device)
        if positions is None and bias is None and q.shape[1] <= k.shape[1]:
            o = structured(q, k, v, visibility, scale)
        else:
            o = None
        o = written(q, k, v, visibility, bias, scale) if o is None else o
        if o is not None:
            return o
    return flash_attention(q, k, v, pattern=pattern, bias=bias, scale=scale, **where)[0]


def structured(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, scale: float | None) -> Tensor | None:
    """Attention by the structure of its pattern, without a mask of its size; None where it has none to use. The keys
    follow each other and the queries are the last of them."""
    queries, keys, pattern = q.shape[1], k.shape[1], visibility.pattern
    band = without_documents(pattern).band
    if band is None:
        return None
    left, right, _ = band
    if visibility.query_documents is None and not pattern.by_documents and (left is None or left >= keys - 1):
        if right is None or right >= queries - 1:
            return dense(q, k, v, scale)
        if right == 0 and queries == keys:
            return dense(q, k, v, scale, is_causal=True)
    if window_fits(visibility, 4 * WRITTEN):
        return window_attention(q, k, v, visibility, scale)
    if visibility.query_documents is None or _size(q, k, visibility) <= WRITTEN:
        return None
    groups = group_documents(visibility, q.shape[0])
    if groups is None:
        return None
    alone = without_documents(pattern)
    return document_attention(q, k, v, groups, lambda q, k, v: attention(q, k, v, pattern=alone, scale=scale))


def written(
    q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, bias: Bias | None, scale: float | None
) -> Tensor | None:
    """Attention under a mask and a bias that are written out, in parts where they are large; None where they are large
    and a backward pass would keep all the parts."""
    queries, keys = q.shape[1], k.shape[1]
    size = _size(q, k, visibility, bias)
    if size <= WRITTEN:
        added = written_bias(bias, queries, keys, q.device)
        return dense(q, k, v, scale, written_mask(visibility, added, q.dtype))
    trained = [q, k, v, *([bias] if isinstance(bias, Tensor) else [])]
    if torch.is_grad_enabled() and (any(t.requires_grad for t in trained) or callable(bias)):
        return None
    return by_rows(q, k, v, visibility, bias, scale, height=max(16, WRITTEN * queries // size))


def _size(q: Tensor, k: Tensor, visibility: Visibility, bias: Bias | None = None) -> int:
    """How many numbers the mask and bias of a call have."""
    rows = 1
    if visibility.key_documents is not None:
        rows = max(visibility.key_documents.shape[0], visibility.key_index.shape[0])
    heads = 1
    if isinstance(bias, Tensor):
        rows, heads = max(rows, bias.shape[0]), bias.shape[1]
    elif bias is not None:
        heads = q.shape[2]
    return rows * heads * q.shape[1] * k.shape[1]
