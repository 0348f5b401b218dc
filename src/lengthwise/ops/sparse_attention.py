"""Softmax attention for any pattern, in time proportional to the tiles that it shows.

    o_i = Σ_j p_ij v_j      p_ij = softmax over the keys j that query i sees, of  c q_i · k_j

Tiles of queries that visit equally many tiles of keys go through the processor's fused kernel as one batch, without a
mask where everything is seen. The kernel gives each part's LSE, by which parts are joined; the backward pass computes
the logits of each tile again, so that extra memory is that of the output, whatever the pattern.

A query that sees nothing gives 0. On a GPU the same pattern goes to PyTorch's FlexAttention: `flex_attention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from lengthwise.ops.flash_attention import merge
from lengthwise.ops.partial_attention import partial_attention, partial_gradients
from lengthwise.ops.tiles import Frame, Stretch


def sparse_attention(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    frames: tuple[Frame, ...],
    scale: float | None = None,
) -> Float[Tensor, "batch queries heads value_dim"]:
    """o for every query, by the frames that `tiles.frames` found for these queries and keys. scale: c, 1/√head_dim by
    default."""
    return SparseAttention.apply(frames, scale, q, k, v)


class SparseAttention(torch.autograd.Function):
    """Frame by frame, stretch by stretch."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, frames: tuple[Frame, ...], scale: float | None, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """O."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        o, lse = None, None
        for frame in frames:
            part, level = _attend(Tiled(frame, q, k, v), scale, dtype)
            if frame.queries is None and o is None:
                o, lse = part, level
                continue
            if o is None or lse is None:
                o = q.new_zeros(*q.shape[:3], v.shape[3], dtype=dtype)
                lse = q.new_full(q.shape[:3], -torch.inf, dtype=dtype)
            rows = slice(None) if frame.queries is None else frame.queries
            o[:, rows], lse[:, rows] = merge(o[:, rows], lse[:, rows], part, level)
        if o is None or lse is None:
            o, lse = q.new_zeros(*q.shape[:3], v.shape[3]), q.new_zeros(q.shape[:3], dtype=dtype)
        output = o.to(q.dtype)
        ctx.frames, ctx.scale = frames, scale
        ctx.save_for_backward(q, k, v, output, lse.masked_fill_(lse == -torch.inf, 0))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of q, k and v."""
        q, k, v, o, lse = ctx.saved_tensors
        totals: list[Tensor | None] = [None, None, None]
        for frame in ctx.frames:
            tiled = Tiled(frame, q, k, v)
            shares = _gradients(tiled, ctx.scale, *(tiled.cut_queries(x) for x in (grad, o, lse[..., None])))
            chosen = (frame.queries, frame.keys, frame.keys)
            for at, (share, index, x) in enumerate(zip(shares, chosen, (q, k, v), strict=True)):
                total = totals[at]
                if total is None and index is None:
                    totals[at] = share
                    continue
                total = torch.zeros_like(x, dtype=lse.dtype) if total is None else total
                totals[at] = total.add_(share) if index is None else total.index_add_(1, index, share)
        found = (torch.zeros_like(x) if t is None else t.to(x.dtype) for t, x in zip(totals, (q, k, v), strict=True))
        return None, None, *found


class Tiled:
    """The chosen queries, keys and values of a frame, filled up with zeros to whole tiles."""

    def __init__(self, frame: Frame, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.frame = frame
        self.groups = q.shape[2] // k.shape[2]
        self.q = self.cut_queries(q)
        self.k, self.v = (filled(x if frame.keys is None else x[:, frame.keys], frame.width) for x in (k, v))

    @property
    def whole(self) -> bool:
        """Whether every query sees something, or is told by a mask that it doesn't."""
        height = self.frame.height
        return sum(stretch.rows for stretch in self.frame.stretches if stretch.begins) * height == self.q.shape[1]

    def cut_queries(self, x: Tensor) -> Tensor:
        """The chosen queries of [batch, length, …]."""
        return filled(x if self.frame.queries is None else x[:, self.frame.queries], self.frame.height)

    def queries_of(self, x: Tensor, stretch: Stretch) -> Tensor:
        """The queries of a stretch, [batch, n, rows, heads, dim] without a copy: n tiles that shift, or one run."""
        rows = x[:, stretch.row * self.frame.height : (stretch.row + stretch.rows) * self.frame.height]
        return rows.unflatten(1, (stretch.rows if stretch.shift else 1, -1))

    def keys_of(self, x: Tensor, stretch: Stretch) -> Tensor:
        """The keys or values of a stretch, [batch, n, columns, heads, dim] without a copy: where tiles shift, they
        overlap."""
        width, n = self.frame.width, stretch.rows if stretch.shift else 1
        columns = x[:, stretch.column * width : (stretch.column + n - 1 + stretch.count) * width]
        return columns.unfold(1, stretch.count * width, width).movedim(-1, 2)

    def add_keys(self, total: Tensor, share: Tensor, stretch: Stretch) -> None:
        """Add what the keys of a stretch get, [batch, n, columns, heads, dim], to the total of all."""
        width, n = self.frame.width, share.shape[1]
        for offset in range(stretch.count) if n > 1 else (0,):
            part = share[:, :, offset * width : (offset + 1) * width] if n > 1 else share
            begin = (stretch.column + offset) * width
            total[:, begin : begin + n * part.shape[2]].unflatten(1, (n, -1)).add_(part)

    def fold(self, rows: Tensor) -> Tensor:
        """Heads that share keys as further queries: [n, rows, heads, dim] to [n, groups · rows, kv_heads, dim]."""
        return rows if self.groups == 1 else rows.unflatten(2, (-1, self.groups)).movedim(3, 1).flatten(1, 2)

    def unfold(self, rows: Tensor) -> Tensor:
        """The inverse of `fold`."""
        return rows if self.groups == 1 else rows.unflatten(1, (self.groups, -1)).movedim(1, 3).flatten(2, 3)

    def by_rows(self, mask: Tensor | None, *tensors: Tensor) -> Iterator[tuple[Tensor | None, list[Tensor]]]:
        """What the kernel takes at once of [batch, n, …]: everything where n is 1, else each row of the batch."""
        if mask is not None and self.groups > 1:
            mask = mask.repeat(1, 1, self.groups, 1)
        if tensors[0].shape[1] == 1:
            yield mask, [x[:, 0] for x in tensors]
        else:
            for row in range(tensors[0].shape[0]):
                yield None if mask is None else mask[min(row, len(mask) - 1)][:, None], [x[row] for x in tensors]


def filled(x: Tensor, size: int) -> Tensor:
    """[batch, length, …] with zeros behind it to a multiple of `size`."""
    short = -x.shape[1] % size
    return pad(x, (0, 0) * (x.ndim - 2) + (0, short)) if short else x


def _attend(tiled: Tiled, scale: float | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """O and LSE of the queries of a frame."""
    q, v = tiled.q, tiled.v
    new = q.new_empty if tiled.whole else q.new_zeros
    o = new(*q.shape[:3], v.shape[3], dtype=dtype)
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=dtype)
    for stretch, mask in tiled.frame.masked():
        into = tiled.queries_of(o, stretch), tiled.queries_of(lse[..., None], stretch)
        rows = tiled.queries_of(q, stretch), *(tiled.keys_of(x, stretch) for x in (tiled.k, v)), *into
        for seen, (own, keys, values, *place) in tiled.by_rows(mask, *rows):
            part, level = partial_attention(tiled.fold(own), keys, values, scale=scale, mask=seen)
            found = tiled.unfold(part).to(dtype), tiled.unfold(level[..., None])
            if not stretch.begins:
                joined, level = merge(place[0], place[1][..., 0], found[0], found[1][..., 0])
                found = joined, level[..., None]
            place[0].copy_(found[0])
            place[1].copy_(found[1])
    queries = tiled.frame.visibility.query_index.shape[1]
    return o[:, :queries], lse[:, :queries]


def _gradients(tiled: Tiled, scale: float | None, grad: Tensor, o: Tensor, lse: Tensor) -> tuple[Tensor, ...]:
    """What a frame adds to the gradients of its queries, keys and values."""
    d_k, d_v = (torch.zeros_like(x, dtype=lse.dtype) for x in (tiled.k, tiled.v))
    d_q = (torch.empty_like if tiled.whole else torch.zeros_like)(tiled.q, dtype=lse.dtype)
    for stretch, mask in tiled.frame.masked():
        rows = [tiled.queries_of(x, stretch) for x in (grad, tiled.q, o, lse, d_q)]
        keys = [tiled.keys_of(x, stretch) for x in (tiled.k, tiled.v)]
        shares: list[tuple[Tensor, Tensor]] = []
        for seen, (d_o, own, out, level, place, near, read) in tiled.by_rows(mask, *rows, *keys):
            d_o, own, out, level = (tiled.fold(x) for x in (d_o, own, out, level))
            share = partial_gradients(d_o, own, near, read, out, level[..., 0], scale=scale, mask=seen)
            (place.copy_ if stretch.begins else place.add_)(tiled.unfold(share[0]))
            shares.append(share[1:])
        for total, parts in zip((d_k, d_v), zip(*shares, strict=True), strict=True):
            one = keys[0].shape[1] == 1
            found = parts[0][:, None] if one else parts[0][None] if len(parts) == 1 else torch.stack(parts)
            tiled.add_keys(total, found, stretch)
    queries, many = tiled.frame.visibility.query_index.shape[1], tiled.frame.visibility.key_index.shape[1]
    return d_q[:, :queries], d_k[:, :many], d_v[:, :many]
