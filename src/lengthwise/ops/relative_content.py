"""A bias that depends on the query and on how far away the key is, in memory linear in the length.

    b_ij = c q_i · E[m + j − i]          0 where the table has no such row

For a tile of queries and keys that follow each other, R = q E'ᵀ over the rows E' of all its distances holds every b_ij
once, each row of the tile one place further to the left than the row above: b is a view of R with another stride, and
the gradient of R is that of b written into the same places. No [queries, keys, channels] is ever built, which the
direct form needs. Huang et al. 2018, arXiv 1809.04281.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from lengthwise.ops.bias import Bias


@dataclass(frozen=True)
class RelativeContent(Bias):
    """The bias of queries that are the last of the keys.

    q: [batch, heads, queries, channels]. table: E, [heads, rows, channels]. keys: how many. zero: m, the row of
    distance 0. positions: [1 or batch, keys], where they don't follow each other: R is then gathered from, which takes
    a product with the whole table.
    """

    q: Float[Tensor, "batch heads queries channels"]
    table: Float[Tensor, "heads rows channels"]
    keys: int
    zero: int
    factor: float = 1.0
    positions: Int[Tensor, "_ keys"] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Rows, heads, queries and keys."""
        return *self.q.shape[:3], self.keys

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """q and E."""
        return self.q, self.table

    def over(self, inputs: Sequence[Tensor]) -> RelativeContent:
        """Other q and E."""
        return replace(self, q=inputs[0], table=inputs[1])

    def scaled(self, factor: float) -> RelativeContent:
        """c times a number."""
        return replace(self, factor=self.factor * factor)

    def of_heads(self, heads: slice) -> RelativeContent:
        """Those of some heads."""
        return replace(self, q=self.q[:, heads], table=self.table[heads])

    def tile(self, queries: slice, keys: slice) -> Tensor:
        """The products, read along diagonals."""
        rows, columns = range(self.q.shape[2])[queries], range(self.keys)[keys]
        q = self.q[:, :, queries] * self.factor
        if self.positions is not None:
            return self._gathered(q, rows, columns)
        if not rows or not columns:
            return q.new_zeros(*q.shape[:3], len(columns))
        begin, end, before, after = self._span(rows, columns)
        products = pad(q @ self.table[:, begin:end].mT, (before, after))
        return _skewed(products, len(columns))

    def add_gradients(self, into: Sequence[Tensor], d_logits: Tensor, queries: slice, keys: slice) -> None:
        """dR from dS in the same places; dQ = c dR E', dE' = c dRᵀ Q."""
        if self.positions is not None:
            super().add_gradients(into, d_logits, queries, keys)
            return
        rows, columns = range(self.q.shape[2])[queries], range(self.keys)[keys]
        begin, end, before, _ = self._span(rows, columns)
        if begin >= end:
            return
        dtype = self.q.dtype
        products = d_logits.new_zeros(*d_logits.shape[:3], len(rows) + len(columns) - 1)
        _skewed(products, len(columns)).copy_(d_logits)
        d_r = products[..., before : before + end - begin].to(dtype)
        d_q, d_table = into[0][:, :, queries], into[1][:, begin:end]
        d_q += (d_r @ self.table[:, begin:end].detach()).mul_(self.factor)
        d_table += (d_r.mT @ self.q[:, :, queries].detach()).sum(0).mul_(self.factor)

    def _span(self, rows: range, columns: range) -> tuple[int, int, int, int]:
        """The rows of the table that a tile needs, from the last query and first key on, and how many are missing
        before and after them."""
        past = self.keys - self.q.shape[2]
        first = self.zero + columns.start - (rows.stop - 1 + past)
        last = first + len(rows) + len(columns) - 1
        begin, end = (min(max(at, 0), self.table.shape[1]) for at in (first, last))
        if begin == end:
            return begin, end, last - first, 0
        return begin, end, begin - first, last - end

    def _gathered(self, q: Tensor, rows: range, columns: range) -> Tensor:
        places = self.positions
        assert places is not None
        past = self.keys - self.q.shape[2]
        of_queries = places[:, rows.start + past : rows.stop + past, None]
        index = self.zero + places[:, None, columns.start : columns.stop] - of_queries
        there = (index >= 0) & (index < self.table.shape[1])
        index = index.clamp(0, self.table.shape[1] - 1)[:, None].expand(*q.shape[:3], len(columns))
        return (q @ self.table.mT).gather(3, index) * there[:, None]


def _skewed(products: Float[Tensor, "batch heads queries span"], columns: int) -> Tensor:
    """b_ij = R[i, j + queries − 1 − i] as a view of R, which begins where its memory does."""
    queries = products.shape[2]
    b, h, i, j = products.stride()
    return products.as_strided((*products.shape[:3], columns), (b, h, i - j, j), (queries - 1) * j)


def relative_content_reference(
    q: Float[Tensor, "batch heads queries channels"],
    table: Float[Tensor, "heads rows channels"],
    keys: int,
    zero: int,
) -> Float[Tensor, "batch heads queries keys"]:
    """The direct form: an embedding gathered for every pair. Needs memory for [queries, keys, channels]."""
    queries = q.shape[2]
    place = torch.arange(keys, device=q.device)
    index = zero + place - place[keys - queries :, None]
    there = (index >= 0) & (index < table.shape[1])
    embeddings = table[:, index.clamp(0, table.shape[1] - 1)] * there[..., None]
    return torch.einsum("bhid,hijd->bhij", q, embeddings)
