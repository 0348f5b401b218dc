"""What forms of Combiner keep that work in segments: the open segment, and summaries of the finished ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.caches.buffer import appended, leave
from lengthwise.caches.documents import DocumentState
from lengthwise.contract import State
from lengthwise.ops.combiner import summarise
from lengthwise.ops.combiner_views import Columns, Rows, Stretch, filled
from lengthwise.ops.joint_attention import Keys, Part, joint_attention

Tokens = Float[Tensor, "batch new heads head_dim"]
S = TypeVar("S", bound="Segmented")


@dataclass(frozen=True)
class Kept(State):
    """Tensors [batch, tokens, …] that grow together: keys and values, say, of tokens or of summaries."""

    tensors: tuple[Tensor, ...]

    @staticmethod
    def none(*like: Tensor) -> Kept:
        """Nothing, for tensors like these."""
        return Kept(tuple(x[:, :0] for x in like))

    def extend(self, *new: Tensor) -> Kept:
        """These and further tokens behind them. They stay as they are."""
        tensors, buffer = appended(self, self.tensors, new)
        longer = Kept(tensors)
        leave(longer, buffer)
        return longer

    @staticmethod
    def last(count: int, *new: Tensor) -> Kept:
        """The last `count` tokens, copied, so that no others are kept alive."""
        latest = [x[:, x.shape[1] - count :] for x in new]
        return Kept(tuple(x if torch.is_grad_enabled() else x.clone() for x in latest))

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The first two: keys and values."""
        return self.tensors[0], self.tensors[1]

    def __len__(self) -> int:
        return self.tensors[0].shape[1]


class Segmented(DocumentState):
    """What is kept by a form that works in segments of `size` tokens."""

    size: int

    def attend(self: S, *given: Tensor, **settings: Any) -> tuple[Tokens, S]:
        """What new tokens read that go on from equally many in all rows, and what is kept after them. This stays as it
        is. given: q, k, v and what else a form needs of the tokens."""
        length = given[0].shape[1]
        if not length:
            return torch.zeros_like(given[2]), self
        place = int(self.position) % self.size
        head = min(self.size - place, length) if place or length <= self.size else 0
        if head == length:
            return self.within(*given, **settings)
        if not head:
            return self.across(*given, **settings)
        first, state = self.within(*(x[:, :head] for x in given), **settings)
        second, state = state.attend(*(x[:, head:] for x in given), **settings)
        return torch.cat([first, second], 1), state

    def within(self: S, *given: Tensor, **settings: Any) -> tuple[Tokens, S]:
        """Tokens that don't go beyond the open segment."""
        raise NotImplementedError

    def across(self: S, *given: Tensor, **settings: Any) -> tuple[Tokens, S]:
        """Tokens of several segments, the first of which they begin."""
        raise NotImplementedError


def near(k: Tensor, v: Tensor, open: Kept) -> tuple[list[tuple[Tensor, Tensor]], list[Keys]]:
    """New tokens of the open segment and those before them, as the first keys of a call."""
    keys = [Keys(0, Stretch(), causal=True)]
    return [(k, v), open.pair], keys + ([Keys(1, Stretch())] if len(open) else [])


@dataclass(frozen=True)
class FixedSummaries(Segmented):
    """Of the form fixed: 2 (L mod w + ⌊L / w⌋) d numbers of each head, and d more within a segment.

    size: w. open: keys and values of the open segment. highest: the largest of its queries in each channel, [batch, 1,
    heads, head_dim]. regions: k̄ and v̄ of the finished segments.
    """

    size: int
    open: Kept
    highest: Float[Tensor, "batch begun heads head_dim"]
    regions: Kept
    position: Int[Tensor, " batch"] | int = 0

    @staticmethod
    def empty(size: int, keys: Tokens) -> FixedSummaries:
        """What is kept before the first token, for keys like these."""
        return FixedSummaries(size, Kept.none(keys, keys), keys[:, :0], Kept.none(keys, keys))

    def sizes(self, position: int) -> list[int]:
        """Tokens of the open segment, whether it is begun, and how many are finished."""
        finished, place = divmod(position, self.size)
        return [place, place, int(place > 0), finished, finished]

    def within(self, q: Tokens, k: Tokens, v: Tokens) -> tuple[Tokens, FixedSummaries]:  # type: ignore[override]
        """Tokens that don't go beyond the open segment."""
        pairs, keys = near(k, v, self.open)
        if len(self.regions):
            keys.append(Keys(2, Stretch()))
        o = joint_attention(q, [*pairs, self.regions.pair], [Part(Stretch(), tuple(keys))])
        open, position = self.open.extend(k, v), int(self.position) + q.shape[1]
        queries = torch.cat([self.highest, q], 1)
        if position % self.size:
            return o, FixedSummaries(self.size, open, queries.amax(1, keepdim=True), self.regions, position)
        regions = self.regions.extend(*(x[:, None] for x in summarise(queries, *open.pair)))
        return o, FixedSummaries(self.size, Kept.none(k, v), queries[:, :0], regions, position)

    def across(self, q: Tokens, k: Tokens, v: Tokens) -> tuple[Tokens, FixedSummaries]:  # type: ignore[override]
        """Tokens of several segments, the first of which they begin."""
        length, size = q.shape[1], self.size
        full, rest = divmod(length, size)
        rows, whole = Rows(size), [x[:, : full * size].unflatten(1, (full, size)).flatten(0, 1) for x in (q, k, v)]
        new = [x.unflatten(0, (-1, full)) for x in summarise(*whole)]
        queries, keys, values = (filled(x, size) for x in (q, k, v))
        before = full - (not rest)  # finished segments that are seen by another
        key, value = (x[:, None, :before].expand(-1, size, -1, -1, -1) for x in new)
        parts = [Part(rows, (Keys(0, rows, causal=True),))]
        if before:
            parts.append(Part(Columns(size, (1, None)), (Keys(1, causal=True),)))
        if len(self.regions):
            parts.append(Part(Stretch(), (Keys(2, Stretch()),)))
        o = joint_attention(queries, [(keys, values), (key, value), self.regions.pair], parts)[:, :length]
        highest = q[:, length - rest :].amax(1, keepdim=True) if rest else q[:, :0]
        regions, position = self.regions.extend(*new), int(self.position) + length
        return o, FixedSummaries(size, Kept.last(rest, k, v), highest, regions, position)
