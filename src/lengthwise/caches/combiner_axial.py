"""What Combiner's form axial keeps: the open segment, and a summary of every finished one from each of its places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.caches.combiner import Kept, Segmented, Tokens, near
from lengthwise.ops.combiner_views import Columns, Rows, Stretch, filled
from lengthwise.ops.dense_attention import dense
from lengthwise.ops.joint_attention import Keys, Part, joint_attention

SummaryKey = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""k̄ of each place of a segment from the queries, the keys, v̄ and the inputs of it, all [rows, tokens, …]."""


@dataclass(frozen=True)
class AxialSummaries(Segmented):
    """Of the form axial: 2 ⌊L / w⌋ w d numbers of each head, and 3 (L mod w) d with the inputs of the open segment.

    size: w. open: keys, values, queries and inputs of the open segment. regions: k̄ and v̄ of the finished segments, seen
    from each of their places, one after the other.
    """

    size: int
    open: Kept
    regions: Kept
    position: Int[Tensor, " batch"] | int = 0

    @staticmethod
    def empty(size: int, keys: Tokens, inputs: Float[Tensor, "batch new width"]) -> AxialSummaries:
        """What is kept before the first token, for keys and inputs like these."""
        return AxialSummaries(size, Kept.none(keys, keys, keys, inputs), Kept.none(keys, keys))

    def sizes(self, position: int) -> list[int]:
        """Tokens of the open segment, and of the finished ones."""
        place = position % self.size
        return [place] * 4 + [position - place] * 2

    def within(  # type: ignore[override]
        self, q: Tokens, k: Tokens, v: Tokens, x: Tensor, *, summary_key: SummaryKey
    ) -> tuple[Tokens, AxialSummaries]:
        """Tokens that don't go beyond the open segment."""
        place, length = len(self.open), q.shape[1]
        pairs, keys = near(k, v, self.open)
        parts = [Part(Stretch(), tuple(keys))]
        if len(self.regions):
            columns = Columns(self.size, columns=(place, place + length))
            parts.append(Part(Stretch(size=1), (Keys(2, columns),)))
        o = joint_attention(q, [*pairs, self.regions.pair], parts)
        open, position = self.open.extend(k, v, q, x), int(self.position) + length
        if position % self.size:
            return o, AxialSummaries(self.size, open, self.regions, position)
        keys_, values, queries, inputs = open.tensors
        regions = self.regions.extend(*seen_from_each(queries, keys_, values, inputs, summary_key))
        return o, AxialSummaries(self.size, Kept.none(*open.tensors), regions, position)

    def across(  # type: ignore[override]
        self, q: Tokens, k: Tokens, v: Tokens, x: Tensor, *, summary_key: SummaryKey
    ) -> tuple[Tokens, AxialSummaries]:
        """Tokens of several segments, the first of which they begin."""
        length, size = q.shape[1], self.size
        full, rest = divmod(length, size)
        whole = [t[:, : full * size].unflatten(1, (full, size)).flatten(0, 1) for t in (q, k, v, x)]
        seen = seen_from_each(whole[0], whole[1], whole[2], whole[3], summary_key)
        new = [t.unflatten(0, (-1, full)).flatten(1, 2) for t in seen]
        queries, keys, values = (filled(t, size) for t in (q, k, v))
        before = full - (not rest)  # finished segments that are seen by another
        rows = Rows(size)
        parts = [Part(rows, (Keys(0, rows, causal=True),))]
        if before:
            parts.append(Part(Columns(size, (1, None)), (Keys(1, Columns(size, (0, before)), causal=True),)))
        if len(self.regions):
            parts.append(Part(Columns(size), (Keys(2, Columns(size)),)))
        o = joint_attention(queries, [(keys, values), (new[0], new[1]), self.regions.pair], parts)[:, :length]
        open, position = Kept.last(rest, k, v, q, x), int(self.position) + length
        return o, AxialSummaries(size, open, self.regions.extend(*new), position)


def seen_from_each(q: Tensor, k: Tensor, v: Tensor, x: Tensor, summary_key: SummaryKey) -> tuple[Tensor, Tensor]:
    """k̄ and v̄ of segments, the rows, from each of their places: all of a segment is seen from there."""
    summary = dense(q, k, v)
    return summary_key(q, k, summary, x), summary


def own_key(q: Tensor, k: Tensor, summary: Tensor, x: Tensor) -> Tensor:  # noqa: ARG001
    """The key of the place itself."""
    return k


def weighted_key(q: Tensor, k: Tensor, summary: Tensor, x: Tensor) -> Tensor:  # noqa: ARG001
    """The keys, weighted as the values of the summary are."""
    return dense(q, k, k)
