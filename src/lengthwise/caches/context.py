"""What the queries of one call attend to: the keys that a cache kept with the new ones behind them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.contract import Layout


@dataclass(frozen=True)
class Context:
    """Keys and values; the queries of the call are those of the last keys.

    positions: the place of each key in its document, for all rows or for each; None where all rows are one document
    from its first key on.
    documents: a number for each document of a row, 0 for the one that the cache goes on with and −1 for what it left;
    None where a row is one document. consecutive: whether the keys follow each other.
    """

    keys: Float[Tensor, "batch keys kv_heads head_dim"]
    values: Float[Tensor, "batch keys kv_heads value_dim"]
    positions: Int[Tensor, "#batch keys"] | None
    documents: Int[Tensor, "batch keys"] | None = None
    consecutive: bool = True


def new_places(
    past: Int[Tensor, " rows"] | int, count: int, layout: Layout | None, device: torch.device
) -> Int[Tensor, "rows count"]:
    """The positions of `count` new tokens: the layout's, or going on from `past` tokens of the document."""
    if layout is not None:
        return layout.positions
    if not isinstance(past, Tensor):
        if count == 1 and not torch.compiler.is_compiling():
            return _next_place(past, device, torch.is_inference_mode_enabled())
        return torch.arange(past, past + count, device=device)[None]
    return past[:, None] + torch.arange(count, device=device)


@lru_cache(maxsize=64)
def _next_place(past: int, device: torch.device, inference: bool) -> Int[Tensor, "1 1"]:  # noqa: ARG001
    """The position after `past` tokens, one tensor for all layers. inference: the mode, to which tensors belong."""
    return torch.full((1, 1), past, device=device)


def join_documents(
    past: Int[Tensor, "batch past"], count: int, layout: Layout | None
) -> Int[Tensor, "batch keys"] | None:
    """Document numbers of kept and new keys, or None where all rows turn out to be one document."""
    new = past.new_zeros(past.shape[0], count) if layout is None else layout.starts.cumsum(1)
    numbers = torch.cat([past, new], dim=1)
    if not torch.compiler.is_compiling() and bool((numbers == numbers[:, :1]).all()):
        return None
    return numbers


def length_of_last(
    past: Int[Tensor, " rows"] | int, count: int, layout: Layout | None, batch: int, device: torch.device
) -> Int[Tensor, " batch"]:
    """The number of tokens of each row's last document, 0 after padding."""
    before = past if isinstance(past, Tensor) else torch.full((batch,), past, device=device)
    if layout is None:
        return before + count
    if count == 0:
        return before
    return torch.where(layout.padding[:, -1], 0, layout.positions[:, -1] + 1)
