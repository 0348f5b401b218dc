"""Softmax attention in a window, as one batch of blocks of queries with the key blocks around them: O(L · window).

    queries   [ block i ]                                        keys of block i   [ first | i − before … i + after ]

Blocks of the interior share one mask, since what a query sees depends on the distance alone; the few queries at either
end, whose blocks would reach beyond the keys, have masks of their own. Keys that a pattern always shows (`first`) stand
before the block's own; interior blocks begin where no window reaches those any more, so that each key counts once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.ops.dense_attention import dense
from lengthwise.ops.pattern import without_documents
from lengthwise.ops.patterns import window
from lengthwise.ops.visibility import Visibility

NARROWEST, WIDEST = 64, 512
"""Queries of a block: below, the kernel's own cost counts; above, a block sees more keys than it needs."""


def block_size(left: int, right: int) -> int:
    """Queries of a block: the window's longer side rounded up to a multiple of 64, within the limits."""
    return min(WIDEST, max(NARROWEST, -(-max(left, right) // NARROWEST) * NARROWEST))


def bounds(visibility: Visibility) -> tuple[int, int, int] | None:
    """Keys before and after a query, and first keys, that a pattern shows; None where it is no window on both sides."""
    band = without_documents(visibility.pattern).band
    if band is None or band[0] is None or band[1] is None:
        return None
    return band[0], band[1], band[2]


def window_fits(visibility: Visibility, largest_mask: int) -> bool:
    """Whether blocks are the way to execute a pattern: a window on both sides, queries for at least two blocks and
    keys beyond the window. With documents, masks differ from block to block and may have `largest_mask` numbers, and
    first keys aren't the same for all queries of a row."""
    sides = bounds(visibility)
    if sides is None:
        return False
    left, right, first = sides
    queries, keys = visibility.query_index.shape[1], visibility.key_index.shape[1]
    block = block_size(left, right)
    if visibility.query_documents is not None:
        rows = visibility.query_documents.shape[0]
        if first or rows * queries * (left + right + 2 * block) > largest_mask:
            return False
    return queries >= 2 * block and keys > left + right + block


def window_attention(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    visibility: Visibility,
    scale: float | None = None,
    block: int | None = None,
) -> Float[Tensor, "batch queries heads value_dim"]:
    """Attention for a pattern that is a window with, at most, the first keys beside it. Queries are the last of the
    keys. block: queries of a block, chosen by the window where it is None."""
    sides = bounds(visibility)
    if sides is None:
        raise InputError(f"blocks need a window with two sides, got the pattern {visibility.pattern}")
    left, right, first = sides
    queries, shift = q.shape[1], k.shape[1] - q.shape[1]
    block = block_size(left, right) if block is None else block
    before, after = -(-left // block), -(-right // block)
    begin = -(-max(0, max(before * block, first + left) - shift) // block) * block
    end = (queries // block - after) * block
    if end <= begin:
        begin = end = queries
    parts = [
        edge(q, k, v, visibility, slice(0, begin), scale),
        interior(q, k, v, visibility, slice(begin, end), scale, block) if end > begin else q.new_zeros(0),
        edge(q, k, v, visibility, slice(end, queries), scale),
    ]
    parts = [part for part in parts if part.numel()]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def edge(
    q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, rows: slice, scale: float | None
) -> Float[Tensor, "batch rows heads value_dim"]:
    """A run of queries with one mask over all the keys that any of them sees."""
    left, right, first = bounds(visibility) or (0, 0, 0)
    shift = k.shape[1] - q.shape[1]
    start, stop = max(0, rows.start + shift - left), min(k.shape[1], rows.stop + shift + right)
    packed = visibility.query_documents is not None
    if not packed and right == 0 and start == rows.start + shift == 0 and left >= rows.stop - 1:
        return dense(q[:, rows], k[:, :stop], v[:, :stop], scale, is_causal=True)
    columns: slice | Tensor = slice(start, stop)
    if first and start:
        reached = torch.arange(start, stop, device=k.device)
        columns = torch.cat([torch.arange(min(first, start), device=k.device), reached])
    mask = visibility.mask(rows, columns)[:, None]
    return dense(q[:, rows], k[:, columns], v[:, columns], scale, mask)


def interior(
    q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, rows: slice, scale: float | None, block: int
) -> Float[Tensor, "batch rows heads value_dim"]:
    """Whole blocks of queries, none of which reaches beyond the keys, as one batch."""
    left, right, first = bounds(visibility) or (0, 0, 0)
    batch, shift = q.shape[0], k.shape[1] - q.shape[1]
    before, after, count = -(-left // block), -(-right // block), (rows.stop - rows.start) // block
    start = rows.start + shift - before * block

    def around(x: Tensor) -> Tensor:
        """[rows, keys, …] as [rows, count, first + keys of a block, …]."""
        blocks = x[:, start : start + (count + before + after) * block].unflatten(1, (-1, block))
        near = torch.cat([blocks[:, i : i + count] for i in range(before + after + 1)], dim=2)
        if not first:
            return near
        kept = x[:, None, :first].expand(-1, count, *[-1] * (x.ndim - 1))
        return torch.cat([kept, near], dim=2)

    place = torch.arange(-before * block, (after + 1) * block, device=q.device)
    mask = window(left, right).mask(place[before * block : (before + 1) * block], place)
    mask = torch.cat([mask.new_ones(block, first), mask], dim=1)[None]
    if visibility.query_documents is not None and visibility.key_documents is not None:
        own = visibility.query_documents[:, rows].unflatten(1, (count, block))
        mask = mask & (own[..., None] == around(visibility.key_documents)[:, :, None])
        mask = mask.expand(batch, -1, -1, -1).flatten(0, 1)
    blocks = q[:, rows].unflatten(1, (count, block)).flatten(0, 1)
    o = dense(blocks, around(k).flatten(0, 1), around(v).flatten(0, 1), scale, mask[:, None])
    return o.unflatten(0, (batch, count)).flatten(1, 2)
