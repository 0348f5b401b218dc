"""The cache of dilated attention: of each branch the keys and values that were sampled of the segment that is open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.caches.buffer import appended, leave
from lengthwise.caches.documents import DocumentState
from lengthwise.contract import State
from lengthwise.ops.dilated_attention import Branch, Past, branches_of, dilated_attention


@dataclass(frozen=True)
class OpenSegment(State):
    """What one branch sampled of its open segment.

    keys, values: [batch, rows, heads, dim]; row m has, for a head of offset s, the segment's token m r + s.
    begun_keys, begun_values: [batch, heads so far, dim], of the row that isn't full yet.
    """

    keys: Float[Tensor, "batch rows heads head_dim"]
    values: Float[Tensor, "batch rows heads value_dim"]
    begun_keys: Float[Tensor, "batch begun head_dim"]
    begun_values: Float[Tensor, "batch begun value_dim"]

    @property
    def past(self) -> Past:
        """As `dilated_attention` takes it."""
        return self.keys, self.values, self.begun_keys, self.begun_values

    def extend(self, branch: Branch, place: int, keys: Tensor, values: Tensor) -> OpenSegment:
        """The segment after further tokens, of which `place` came before. This one stays as it is."""
        after = place + keys.shape[1]
        if after >= branch.segment:
            left = after % branch.segment
            latest = (x[:, x.shape[1] - left :] for x in (keys, values))
            return OpenSegment(*(x[:, :0] for x in self.past)).extend(branch, 0, *latest)
        full = after // branch.dilation - place // branch.dilation
        (new_keys, begun_keys), (new_values, begun_values) = (
            sampled(branch, place, full, *pair) for pair in ((keys, self.begun_keys), (values, self.begun_values))
        )
        (all_keys, all_values), buffer = appended(self, (self.keys, self.values), (new_keys, new_values))
        longer = OpenSegment(all_keys, all_values, begun_keys, begun_values)
        leave(longer, buffer)
        return longer


def sampled(branch: Branch, place: int, full: int, new: Tensor, begun: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that new tokens fill, as many as `full`, and the begun row after them."""
    rows, after = [], []
    for offset, group in enumerate(branch.heads(new.shape[2])):
        own = new[:, (offset - place) % branch.dilation :: branch.dilation, group]
        if offset < place % branch.dilation:
            own = torch.cat([begun[:, None, group].to(own.dtype), own], 1)
        rows.append(own[:, :full])
        after.append(own[:, full:].flatten(1, 2))
    # Copies, since a view would keep all tokens of the call alive.
    return torch.cat(rows, 2), torch.cat(after, 1)


@dataclass(frozen=True)
class DilatedCache(DocumentState):
    """The open segments of all branches: 2 head_dim Σ_i Σ_j ⌈((L mod w_i) − s_ij) / r_i⌉ numbers a row for all heads j.

    lengths, dilations: w_i and r_i. segments: of each branch; one that is full is dropped.
    position: tokens seen of the document that goes on, for all rows or for each.
    """

    lengths: tuple[int, ...]
    dilations: tuple[int, ...]
    segments: tuple[OpenSegment, ...]
    position: Int[Tensor, " batch"] | int = 0

    @staticmethod
    def empty(
        branches: Sequence[Branch],
        keys: Float[Tensor, "batch new heads head_dim"],
        values: Float[Tensor, "batch new heads value_dim"],
    ) -> DilatedCache:
        """A cache that has seen nothing, for keys and values like these."""
        begun = (x.new_zeros(x.shape[0], 0, x.shape[3]) for x in (keys, values))
        none = OpenSegment(keys[:, :0], values[:, :0], *begun)
        lengths, dilations = tuple(branch.segment for branch in branches), tuple(branch.dilation for branch in branches)
        return DilatedCache(lengths, dilations, (none,) * len(branches))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """(w_i, r_i)."""
        return branches_of(self.lengths, self.dilations)

    def sizes(self, position: int) -> list[int]:
        """Rows, rows, heads and heads of each branch."""
        heads, found = self.segments[0].keys.shape[2], []
        for branch in self.branches:
            place = position % branch.segment
            found += 2 * [place // branch.dilation] + 2 * [branch.begun(place, heads)]
        return found

    def attend(
        self,
        q: Float[Tensor, "batch new heads head_dim"],
        keys: Float[Tensor, "batch new heads head_dim"],
        values: Float[Tensor, "batch new heads value_dim"],
        *,
        causal: bool = True,
        weights: str = "detached",
    ) -> tuple[Float[Tensor, "batch new heads value_dim"], DilatedCache]:
        """What new tokens read that go on from equally many in all rows, and the cache after them, or this one
        where nothing can go on. This cache stays as it is. causal, weights: as in `dilated_attention`."""
        start = int(self.position)
        past = [kept.past for kept in self.segments]
        o = dilated_attention(q, keys, values, self.branches, start=start, past=past, causal=causal, weights=weights)
        if not causal:
            return o, self
        segments = tuple(
            kept.extend(branch, start % branch.segment, keys, values)
            for branch, kept in zip(self.branches, self.segments, strict=True)
        )
        return o, DilatedCache(self.lengths, self.dilations, segments, start + q.shape[1])
