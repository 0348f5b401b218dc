"""Documents of a batch as rows of other batches, in which all are equally long, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def as_rows(
    x: Shaped[Tensor, "batch length ..."], order: Int[Tensor, " tokens"], sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Batches [rows, tokens, …] of these sizes of the tokens of x, one after the other. order: the tokens in the order
    in which they are read, as indices into [batch · length]."""
    parts = x.flatten(0, 1).index_select(0, order).split([rows * tokens for rows, tokens in sizes])
    return [part.unflatten(0, size) for part, size in zip(parts, sizes, strict=True)]


def put_back(
    parts: Sequence[Tensor], order: Int[Tensor, " tokens"], shape: Sequence[int]
) -> Shaped[Tensor, "batch length ..."]:
    """The tokens of the batches that `as_rows` made at their places in a batch of this shape, and 0 at others."""
    tokens = torch.cat([part.flatten(0, 1) for part in parts])
    whole = tokens.new_zeros(shape[0] * shape[1], *tokens.shape[1:])
    return whole.index_copy(0, order, tokens).unflatten(0, shape)
