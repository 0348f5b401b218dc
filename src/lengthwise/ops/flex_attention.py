"""A pattern on a GPU: PyTorch's FlexAttention with the same pattern as its mask.

The pattern's conditions are the mask function, so that what is seen there is by definition what is seen here; blocks of
which nothing is seen are skipped.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lengthwise.ops.pattern import Pattern
from lengthwise.ops.visibility import Visibility, aligned

BLOCK = 128
"""The side of FlexAttention's blocks, to which lengths are rounded up while a mask is made."""


def flex(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    seen: BlockMask,
    scale: float | None = None,
) -> Float[Tensor, "batch queries heads value_dim"]:
    """o for every query. seen: from `block_mask`. scale: 1/√head_dim by default. A query that sees nothing gives 0."""
    rows = (x.transpose(1, 2) for x in (q, k, v))
    kernel = _compiled() if q.device.type == "cuda" else flex_attention
    return kernel(*rows, block_mask=seen, scale=scale, enable_gqa=q.shape[2] != k.shape[2]).transpose(1, 2)


def block_mask(visibility: Visibility) -> BlockMask:
    """What is seen in one call."""
    batch = visibility.rows
    queries, keys = visibility.query_index.shape[1], visibility.key_index.shape[1]
    device = visibility.key_index.device
    return create_block_mask(
        lambda row, head, query, key: _seen(visibility, row, query, key),  # noqa: ARG005
        batch,
        None,
        queries,
        keys,
        device=device,
        BLOCK_SIZE=BLOCK,
    )


@functools.lru_cache(maxsize=64)
def block_mask_of(pattern: Pattern, queries: int, keys: int, device: torch.device) -> BlockMask:
    """What is seen of a row that is one document, whose queries are the last of its keys. It is kept, since all layers
    and steps of training ask for the same."""
    return block_mask(aligned(pattern, queries, keys, device=device))


def _seen(visibility: Visibility, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Whether queries of rows see keys, by their numbers."""

    def at(values: Tensor, index: Tensor) -> Tensor:
        return values[row if len(values) > 1 else row * 0, index]

    found = visibility.pattern.holds(at(visibility.query_index, query), at(visibility.key_index, key))
    if visibility.query_documents is None or visibility.key_documents is None:
        return found
    return found & (at(visibility.query_documents, query) == at(visibility.key_documents, key))


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
