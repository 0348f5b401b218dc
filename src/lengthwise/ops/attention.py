"""Softmax attention of many queries to many keys, for any pattern of who sees whom.

    o_i = Σ_j p_ij v_j      p_ij = softmax over the keys j that query i sees, of  c q_i · k_j + b_ij

Queries are the last of the keys: query i has the place of key i + keys − queries. Query head h uses key-value head
⌊h · kv_heads / heads⌋. A query that sees nothing gives 0. How a call is executed:

    one query that sees everything              a kernel that reads the keys and values once: `step_attention`
    everything or causal                        scaled_dot_product_attention, without a mask where it needs none
    small enough for its mask to be written     scaled_dot_product_attention with the mask
    documents                                   documents of equal length together, each as a row of its own
    any other pattern on long rows              the tiles that it shows: `sparse_attention`; FlexAttention on a GPU
    a bias on long rows                         tiles that recompute in the backward pass: `flash_attention`

Where heads see by different patterns, each group of heads is a call of its own.
None of them is approximate, and none but the small one holds a [queries, keys] matrix.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.ops.backend import resolve
from lengthwise.ops.bias import Bias, Written
from lengthwise.ops.dense_attention import dense, written_mask
from lengthwise.ops.document_attention import document_attention, group_documents
from lengthwise.ops.flash_attention import flash_attention
from lengthwise.ops.flex_attention import block_mask, block_mask_of, flex
from lengthwise.ops.pattern import Pattern, without_documents
from lengthwise.ops.patterns import causal
from lengthwise.ops.sparse_attention import sparse_attention
from lengthwise.ops.step_attention import step_attention
from lengthwise.ops.tiles import frames, frames_of
from lengthwise.ops.visibility import Visibility, aligned

WRITTEN = 2**22
"""The most numbers that a mask or a bias may have to be written out: 16 MiB in float32."""

FEW = 64
"""The side of the tiles by which it is decided whether a mask that could be written out is worth it."""


def attention_reference(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    *,
    pattern: Pattern | None = None,
    bias: Tensor | Bias | None = None,
    scale: float | None = None,
    query_documents: Int[Tensor, "#batch queries"] | None = None,
    key_documents: Int[Tensor, "#batch keys"] | None = None,
    positions: Int[Tensor, "#batch keys"] | None = None,
) -> Float[Tensor, "batch queries heads value_dim"]:
    """The definition: the matrix of logits written out, masked and normalised."""
    pattern = causal() if pattern is None else pattern
    where = query_documents, key_documents, positions, q.device
    seen = torch.stack([aligned(one, q.shape[1], k.shape[1], *where).mask() for one in pattern.heads], dim=1)
    seen = seen.repeat_interleave(q.shape[2] // len(pattern.heads), dim=1)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    logits = torch.einsum("bihd,bjhd->bhij", q * scale, k)
    if bias is not None:
        logits = logits + (bias if isinstance(bias, Tensor) else bias.written())
    p = logits.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)
    return torch.einsum("bhij,bjhd->bihd", p.to(v.dtype), v)


def attention(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    *,
    pattern: Pattern | None = None,
    bias: Tensor | Bias | None = None,
    scale: float | None = None,
    query_documents: Int[Tensor, "#batch queries"] | None = None,
    key_documents: Int[Tensor, "#batch keys"] | None = None,
    positions: Int[Tensor, "#batch keys"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "batch queries heads value_dim"]:
    """o for every query.

    pattern: who sees whom, causal by default. bias: a tensor [batch or 1, heads or 1, queries, keys], or a `Bias`,
    of which no more than a tile is ever written out.
    scale: c, 1/√head_dim by default.
    query_documents, key_documents: numbers of documents, each one run of its row; other documents are hidden.
    positions: the places of the keys in their documents, where keys don't follow each other.
    backend: "reference", "torch", or "tiled" for the recomputing tiles whatever the pattern.

    Raises InputError for heads that don't divide and documents that are needed and missing.
    """
    heads, kv_heads = q.shape[2], k.shape[2]
    if heads % kv_heads:
        raise InputError(f"kv_heads must divide heads: got kv_heads={kv_heads} and heads={heads}")
    pattern = causal() if pattern is None else pattern
    bias = Written(bias) if isinstance(bias, Tensor) else bias
    parts = pattern.heads
    if heads % len(parts):
        raise InputError(f"{len(parts)} patterns must divide the heads, got {heads} heads")
    form = resolve(backend, ("torch", "tiled", "reference"), q, k, v)
    alone = query_documents is None and key_documents is None and positions is None
    if form == "torch" and alone and len(parts) == 1:
        o = whole(q, k, v, pattern, bias, scale)
        if o is not None:
            return o
    where: dict[str, Any] = {
        "query_documents": query_documents,
        "key_documents": key_documents,
        "positions": positions,
    }
    if form == "reference":
        return attention_reference(q, k, v, pattern=pattern, bias=bias, scale=scale, **where)
    if len(parts) > 1:
        more: dict[str, Any] = {"scale": scale, "backend": form, **where}
        return torch.cat([_group(q, k, v, own, one, bias, more) for own, one in _alike(parts, heads)], dim=2)
    if form == "torch":
        consecutive = positions is None
        visibility = aligned(pattern, q.shape[1], k.shape[1], **where, device=q.device)
        o = written(q, k, v, visibility, bias, scale, consecutive)
        if o is not None:
            return o
        if bias is None:
            return by_structure(q, k, v, visibility, scale, consecutive)
    return recomputed(q, k, v, pattern, bias, scale, where)


@torch.compiler.disable
def recomputed(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, bias: Bias | None, scale: float | None, where: dict[str, Any]
) -> Tensor:
    """Attention by tiles that the backward pass computes again."""
    return flash_attention(q, k, v, pattern=pattern, bias=bias, scale=scale, **where)[0]


def _alike(patterns: tuple[Pattern, ...], heads: int) -> list[tuple[slice, Pattern]]:
    """Runs of neighbouring heads that see alike, and what they see."""
    size, found, begin = heads // len(patterns), [], 0
    for end in range(1, len(patterns) + 1):
        if end == len(patterns) or patterns[end] != patterns[begin]:
            found.append((slice(begin * size, end * size), patterns[begin]))
            begin = end
    return found


def _group(
    q: Tensor, k: Tensor, v: Tensor, own: slice, pattern: Pattern, bias: Bias | None, more: dict[str, Any]
) -> Tensor:
    """Attention of one group of heads, by its own pattern. Keys that no query of theirs sees are left out."""
    groups = q.shape[2] // k.shape[2]
    shared: slice | list[int] = slice(own.start // groups, own.stop // groups)
    if own.start % groups or own.stop % groups:  # a group of query heads ends inside those that share keys
        shared = [head // groups for head in range(own.start, own.stop)]
    bias = None if bias is None else bias.of_heads(own)
    band = pattern.band
    if bias is None and more["positions"] is None and band is not None and band[0] is not None and not band[2]:
        near = slice(max(0, k.shape[1] - q.shape[1] - band[0]), None)
        k, v, documents = k[:, near], v[:, near], more["key_documents"]
        more = {**more, "key_documents": None if documents is None else documents[:, near]}
    return attention(q[:, :, own], k[:, :, shared], v[:, :, shared], pattern=pattern, bias=bias, **more)


def whole(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, bias: Bias | None, scale: float | None) -> Tensor | None:
    """Attention to everything in rows of one document, with a bias where it is small, or without one to everything
    before; None where the pattern shows less."""
    queries, keys = q.shape[1], k.shape[1]
    if pattern.band is None or pattern.by_documents:
        return None
    left, right, _ = pattern.band
    if left is not None and left < keys - 1:
        return None
    if right is None or (right >= queries - 1 and queries <= keys):
        if queries == 1:
            return step_attention(q, k, v, scale, bias)
        if bias is None:
            return dense(q, k, v, scale)
        rows, heads = bias.shape[:2]
        small = rows * heads * queries * keys <= WRITTEN
        return dense(q, k, v, scale, bias.written().to(q.dtype)) if small else None
    return dense(q, k, v, scale, is_causal=True) if right == 0 and queries == keys and bias is None else None


def by_structure(
    q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, scale: float | None, consecutive: bool
) -> Tensor:
    """Attention of long rows by what the pattern shows, without a mask of its size."""
    pattern, packed = visibility.pattern, visibility.query_documents is not None
    if packed and consecutive and not pattern.limited:
        groups = group_documents(visibility, q.shape[0])
        if groups is not None:
            alone = without_documents(pattern)
            return document_attention(q, k, v, groups, lambda q, k, v: attention(q, k, v, pattern=alone, scale=scale))
    if q.device.type == "cuda":
        alike = consecutive and not packed
        of = block_mask_of(pattern, q.shape[1], k.shape[1], q.device) if alike else block_mask(visibility)
        return flex(q, k, v, of, scale)
    return in_tiles(q, k, v, visibility, scale, consecutive and not packed)


@torch.compiler.disable
def in_tiles(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, scale: float | None, alike: bool) -> Tensor:
    """Attention by the tiles that a pattern shows. alike: the rows are one document whose queries are its last keys."""
    if alike:
        return sparse_attention(q, k, v, frames_of(visibility.pattern, q.shape[1], k.shape[1], q.device), scale)
    return sparse_attention(q, k, v, frames(visibility), scale)


def written(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visibility: Visibility,
    bias: Bias | None,
    scale: float | None,
    consecutive: bool,
) -> Tensor | None:
    """Attention under a mask and a bias that are written out, where they are small; None where they are large."""
    if _size(q, k, visibility, bias) <= WRITTEN and (bias is not None or not _sparse(visibility, consecutive)):
        added = None if bias is None else bias.written()
        return dense(q, k, v, scale, written_mask(visibility, added, q.dtype))
    return None


def _sparse(visibility: Visibility, consecutive: bool) -> bool:
    """Whether a pattern shows so little of a row that it is worth visiting that alone: less than a third of the tiles
    of a row of several."""
    queries, keys = visibility.query_index.shape[1], visibility.key_index.shape[1]
    if queries < 4 * FEW or keys < 4 * FEW or torch.compiler.is_compiling():
        return False
    if consecutive and visibility.query_documents is None:
        return _sparse_of(visibility.pattern, queries, keys)
    return _shows_little(visibility)


@functools.lru_cache(maxsize=256)
def _sparse_of(pattern: Pattern, queries: int, keys: int) -> bool:
    """The same of a row that is one document, whose queries are the last of its keys. It is kept, since all layers and
    steps of training ask for the same."""
    return _shows_little(aligned(pattern, queries, keys))


def _shows_little(visibility: Visibility) -> bool:
    some, _ = visibility.verdicts(FEW, FEW)
    return int(some.sum()) * 3 < some.numel()


def _size(q: Tensor, k: Tensor, visibility: Visibility, bias: Bias | None = None) -> int:
    """How many numbers the mask and bias of a call have."""
    rows, heads = visibility.rows, 1
    if bias is not None:
        rows, heads = max(rows, bias.shape[0]), bias.shape[1]
    return rows * heads * q.shape[1] * k.shape[1]
