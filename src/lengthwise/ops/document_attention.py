"""Softmax attention of packed documents: documents of equal length become rows of one batch.

Tokens are put in order of their document's length once, divided into groups of equal length, and put back once, so that
neither time nor memory is spent on keys of other documents, and a backward pass gathers each gradient once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.ops.document_rows import as_rows, put_back
from lengthwise.ops.visibility import Visibility, run_starts


@dataclass(frozen=True)
class Groups:
    """Documents of a batch in groups of equal size.

    queries, keys: the tokens in order of their group, as indices into [batch · length].
    sizes: (documents, queries of each, keys of each) of every group.
    """

    queries: Int[Tensor, " queries"]
    keys: Int[Tensor, " keys"]
    sizes: list[tuple[int, int, int]]


def group_documents(visibility: Visibility, batch: int) -> Groups | None:
    """The groups, or None where a document isn't one run of keys of which its queries are the last."""
    if visibility.query_documents is None or visibility.key_documents is None:
        return None
    key_documents = visibility.key_documents.expand(batch, -1)
    keys, queries = key_documents.shape[1], visibility.query_documents.shape[1]
    if queries > keys or not (key_documents[:, keys - queries :] == visibility.query_documents).all():
        return None
    row = torch.arange(batch, device=key_documents.device)[:, None]
    starts = run_starts(key_documents)
    _, run = (row * keys + starts).unique(return_inverse=True)
    runs = int(run.max()) + 1 if run.numel() else 0
    if len(torch.stack([row.expand_as(key_documents), key_documents]).flatten(1).unique(dim=1).T) != runs:
        return None
    key_count = run.flatten().bincount(minlength=runs)
    query_run = run[:, keys - queries :]
    query_count = query_run.flatten().bincount(minlength=runs)
    size = torch.where(query_count > 0, query_count * (keys + 1) + key_count, 0)
    order = size.argsort(stable=True)
    rank = order.argsort()
    living = int((query_count == 0).sum())
    key_order = rank[run.flatten()].argsort(stable=True)
    dead = int(key_count[order[:living]].sum())
    distinct, count = size[order[living:]].unique_consecutive(return_counts=True)
    sizes = [
        (number, each // (keys + 1), each % (keys + 1))
        for each, number in zip(distinct.tolist(), count.tolist(), strict=True)
    ]
    return Groups(rank[query_run.flatten()].argsort(stable=True), key_order[dead:], sizes)


def document_attention(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    groups: Groups,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Float[Tensor, "batch queries heads value_dim"]:
    """`attend` applied to every group of documents, [documents, length, heads, dim], each document a row."""
    q_parts = as_rows(q, groups.queries, [(number, queries) for number, queries, _ in groups.sizes])
    sizes = [(number, keys) for number, _, keys in groups.sizes]
    k_parts, v_parts = (as_rows(x, groups.keys, sizes) for x in (k, v))
    outputs = [attend(*given) for given in zip(q_parts, k_parts, v_parts, strict=True)]
    return put_back(outputs, groups.queries, q.shape[:2])
