"""Intervals: the documents of a row in stretches of equally many tokens, each counted from its document's first one.

What is computed of a whole interval exists from its end on, for the tokens after it. All is found by comparing and
counting, without a loop, for rows that go on from different places and hold any documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Starts = Bool[Tensor, "batch length"]


@dataclass(frozen=True)
class Intervals:
    """Where the intervals of a stretch of tokens are.

    begins: True where a token begins an interval.
    ends: the place of the last token of each finished interval, in order; any place where a row has fewer.
    first: True where a finished interval is the first of its document.
    latest: for each token, and for one more after the last, the latest interval of its document that was finished
        before it, as an index into what `lookup` puts in a row.
    open: tokens since the last interval ended, or since the document began, after the last token.
    """

    begins: Bool[Tensor, "batch length"]
    ends: Int[Tensor, "batch intervals"]
    first: Bool[Tensor, "batch intervals"]
    latest: Int[Tensor, "batch length_and_1"]
    open: Int[Tensor, " batch"]

    def lookup(
        self,
        before: Float[Tensor, "batch dim"],
        values: Float[Tensor, "batch intervals dim"],
        nothing: float = 0.0,
    ) -> Float[Tensor, "batch length_and_1 dim"]:
        """For each token, and for one more after the last, the value of its latest interval.

        before: the value from before the first token. nothing: that of documents without a finished interval.
        """
        none = before.new_full((len(before), 1, before.shape[1]), nothing)
        table = torch.cat([before[:, None], values.to(before.dtype), none], 1)
        return table.gather(1, self.latest[..., None].expand(-1, -1, table.shape[2]))


def tokens_modulo(
    seen: Int[Tensor, " batch"], length: int, starts: Starts | None, every: int
) -> Int[Tensor, "batch length"]:
    """Tokens of its document up to and with each token, modulo `every`. seen: those before the first token."""
    index = torch.arange(length, device=seen.device).expand(len(seen), -1)
    begin = document_begins(seen, length, starts)
    return torch.where(begin < 0, seen[:, None] + index + 1, index - begin + 1) % every


def document_begins(seen: Int[Tensor, " batch"], length: int, starts: Starts | None) -> Int[Tensor, "batch length"]:
    """The place where the document of each token begins, −1 where that is before the first token."""
    index = torch.arange(length, device=seen.device).expand(len(seen), -1)
    return torch.full_like(index, -1) if starts is None else torch.where(starts, index, -1).cummax(1).values


def find_intervals(seen: Int[Tensor, " batch"], length: int, starts: Starts | None, every: int) -> Intervals:
    """The intervals of `every` tokens in `length` tokens that follow `seen` tokens of an open one."""
    count = tokens_modulo(seen, length, starts, every)
    begin = document_begins(seen, length, starts)
    closes = count == 0
    index = torch.arange(length, device=seen.device).expand_as(count)
    finished = closes.long().cumsum(1)
    room = (length + every - 1) // every
    # A few tokens mostly finish nothing, and then what is computed of intervals costs a token decoded alone nothing.
    if length < every and not torch.compiler.is_compiling() and not closes.any():
        room = 0
    number = torch.arange(1, room + 1, device=seen.device).expand(len(seen), -1)
    ends = torch.searchsorted(finished, number.contiguous()).clamp_max(max(length - 1, 0))
    last_end = torch.where(closes, index, -1).cummax(1).values
    # What a token sees was finished before it; after the last token, up to and with it, by the same document.
    edge = torch.full_like(seen[:, None], -1)
    last_end, finished = torch.cat([edge, last_end], 1), torch.cat([edge + 1, finished], 1)
    document = torch.cat([begin, begin[:, -1:]], 1) if length else edge
    return Intervals(
        begins=count == 1 % every,
        ends=ends,
        first=(begin.gather(1, ends) == ends - every + 1) & (ends >= every - 1),
        latest=torch.where(document > last_end, room + 1, finished),
        open=count[:, -1] if length else seen,
    )
