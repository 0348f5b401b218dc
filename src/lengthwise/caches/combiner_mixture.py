"""What Combiner's form mixture keeps: all tokens, and summaries of what is beside and above places of a segment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from lengthwise.caches.combiner import Kept, Segmented, Tokens, near
from lengthwise.ops.combiner import others, running
from lengthwise.ops.combiner_views import Columns, Rows, Stretch, filled
from lengthwise.ops.joint_attention import Keys, Part, joint_attention

SIDES: tuple[tuple[int, int | None], ...] = ((1, None), (0, -1))
"""The columns that have something to their left, and those that have to their right."""


@dataclass(frozen=True)
class MixtureSummaries(Segmented):
    """Of the form mixture: for each head (6 w − 4) ⌊L / w⌋ d numbers, 3 w d, and 3 (L mod w) d.

    size: w. open: keys, values and queries of the open segment. rows: keys and values of the finished ones. left: k̄ and
    v̄ of what is left of each of their places but the first. right: likewise, but the last. columns: k̄, v̄ and the
    largest queries of each place in all of them together.
    """

    size: int
    open: Kept
    rows: Kept
    left: Kept
    right: Kept
    columns: Kept
    position: Int[Tensor, " batch"] | int = 0

    @staticmethod
    def empty(size: int, keys: Tokens) -> MixtureSummaries:
        """What is kept before the first token, for keys like these."""
        rows, left, right = (Kept.none(keys, keys) for _ in range(3))
        return MixtureSummaries(size, Kept.none(keys, keys, keys), rows, left, right, Kept.none(keys, keys, keys))

    def sizes(self, position: int) -> list[int]:
        """Tokens of the open and of the finished segments, places that have something beside them, and places."""
        finished, place = divmod(position, self.size)
        beside = finished * (self.size - 1)
        return [place] * 3 + [finished * self.size] * 2 + [beside] * 4 + [self.size if finished else 0] * 3

    def within(self, q: Tokens, k: Tokens, v: Tokens) -> tuple[Tokens, MixtureSummaries]:  # type: ignore[override]
        """Tokens that don't go beyond the open segment."""
        place, length, size = len(self.open), q.shape[1], self.size
        pairs, keys = near(k, v, self.open)
        pairs += [self.rows.pair, self.left.pair, self.right.pair, self.columns.pair]
        parts = [Part(Stretch(), tuple(keys))]
        if len(self.rows):
            parts.append(Part(Stretch(size=1), (Keys(2, Columns(size, columns=(place, place + length))),)))
            begin, end = (
                int(place == 0),
                length - int(place + length == size),
            )  # of what has something to its left, right
            if end > 0 and size > 1:
                view = Columns(size - 1, columns=(place, place + end))
                parts.append(Part(Stretch(0, end, 1), (Keys(4, view),)))
            if length > begin and size > 1:
                view = Columns(size - 1, columns=(place + begin - 1, place + length - 1))
                parts.append(Part(Stretch(begin, size=1), (Keys(3, view),)))
            if size > 1:
                parts.append(Part(Stretch(), (Keys(5, Stretch(), mask=others(length, size, q.device, place)),)))
        o = joint_attention(q, pairs, parts)
        open, position = self.open.extend(k, v, q), int(self.position) + length
        if position % size:
            return o, MixtureSummaries(size, open, self.rows, self.left, self.right, self.columns, position)
        keys_, values, queries = open.tensors
        above = self.above(queries, keys_, values)
        return o, self.finished(queries, keys_, values, above, Kept.none(*open.tensors), position)

    def across(self, q: Tokens, k: Tokens, v: Tokens) -> tuple[Tokens, MixtureSummaries]:  # type: ignore[override]
        """Tokens of several segments, the first of which they begin."""
        length, size = q.shape[1], self.size
        full, rest = divmod(length, size)
        whole_q, whole_k, whole_v = (x[:, : full * size] for x in (q, k, v))
        above = self.above(whole_q, whole_k, whole_v)
        open = Kept.last(rest, k, v, q)
        state = self.finished(whole_q, whole_k, whole_v, above, open, int(self.position) + length)
        before = full - (not rest)  # finished segments that are seen by another
        queries, keys, values = (filled(x, size) for x in (q, k, v))
        pairs = [(keys, values), (above[0], above[1]), self.rows.pair, self.columns.pair]
        later, rows = (1, None), Rows(size)
        parts = [Part(rows, (Keys(0, rows, causal=True),))]
        if before:
            parts.append(Part(Columns(size, later), (Keys(0, Columns(size, (0, before)), causal=True),)))
        if len(self.rows):
            parts.append(Part(Columns(size), (Keys(2, Columns(size)),)))
        if size > 1:
            mask = others(size, size, q.device)
            if before:
                parts.append(Part(Rows(size, later), (Keys(1, Rows(size, (0, before)), mask=mask),)))
            if len(self.rows):
                parts.append(Part(Rows(size, (0, 1)), (Keys(3, Stretch(), mask=mask),)))
            for side, (new, old) in zip(SIDES, ((state.left, self.left), (state.right, self.right)), strict=True):
                if before:
                    view = Columns(size - 1, (0, before))
                    latest = tuple(x[:, len(old) :] for x in new.pair)
                    parts.append(Part(Columns(size, later, side), (Keys(len(pairs), view, causal=True),)))
                    pairs.append((latest[0], latest[1]))
                if len(old):
                    parts.append(Part(Columns(size, columns=side), (Keys(len(pairs), Columns(size - 1)),)))
                    pairs.append(old.pair)
        return joint_attention(queries, pairs, parts)[:, :length], state

    def above(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """k̄, v̄ and the largest queries of each place, in all segments up to each of some whole ones."""
        highest, lowest = (x.unflatten(1, (-1, self.size)).cummax(1).values for x in (q, k))
        if len(self.columns):
            key, _, query = (x[:, None] for x in self.columns.tensors)
            highest, lowest = torch.maximum(highest, query), torch.maximum(lowest, key)
        view = Columns(self.size)
        seen = [Keys(0, view, causal=True), *([Keys(1, view)] if len(self.rows) else [])]
        query, key = highest.flatten(1, 2), lowest.flatten(1, 2)
        return key, joint_attention(query, [(k, v), self.rows.pair], [Part(view, tuple(seen))]), query

    def finished(
        self, q: Tensor, k: Tensor, v: Tensor, above: tuple[Tensor, ...], open: Kept, position: int
    ) -> MixtureSummaries:
        """What is kept after further whole segments, with what follows them."""
        size = self.size
        whole = [Rows(size)(x).flatten(0, 1) for x in (q, k, v)]
        before = [x[:, :-1] for x in running(*whole)]
        behind = [x[:, :-1].flip(1) for x in running(*(x.flip(1) for x in whole))]
        left, right = (
            kept.extend(*(x.unflatten(0, (len(q), -1)).flatten(1, 2) for x in pair))
            for kept, pair in ((self.left, before), (self.right, behind))
        )
        return MixtureSummaries(size, open, self.rows.extend(k, v), left, right, Kept.last(size, *above), position)
