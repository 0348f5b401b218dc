"""States that depend on how far a document is, for rows and packed documents that are at different places.

What a step does is written for rows that have all seen equally many tokens. Here documents of equal length that go on
from equally many tokens become the rows of one such step, and what is left of each row's last document is put together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from lengthwise.caches.context import new_places
from lengthwise.contract import Layout, State, map_state, state_tensors
from lengthwise.ops.document_rows import as_rows, put_back

S = TypeVar("S", bound="DocumentState")


class DocumentState(State):
    """A state whose tensors are [batch, tokens, …], with as many tokens as `sizes` says.

    position: tokens seen of the document that goes on, for all rows or for each. Where rows differ, tensors have room
    for the longest and a row's own tokens come first.
    """

    position: Int[Tensor, " batch"] | int

    def sizes(self, position: int) -> Sequence[int]:
        """Tokens of each tensor, in order, after `position` tokens; 0 after none."""
        raise NotImplementedError

    def places(self, count: int, layout: Layout | None = None) -> Int[Tensor, "rows count"]:
        """The positions of the next `count` tokens."""
        return new_places(self.position, count, layout, next(state_tensors(self)).device)

    def at(self: S, position: int, rows: Int[Tensor, " rows"] | None = None) -> S:
        """The state of some rows, all by default, that have seen `position` tokens."""
        sizes = iter(self.sizes(position))

        def cut(x: Tensor) -> Tensor:
            return (x if rows is None else x.index_select(0, rows))[:, : next(sizes)]

        return map_state(cut, self.counted(position))

    def counted(self: S, position: Int[Tensor, " batch"] | int) -> S:
        """The same tensors, after another number of tokens."""
        return dataclasses.replace(self, position=position)  # type: ignore[type-var]

    def bytes_after(self, position: int) -> int:
        """Bytes of one row that has seen `position` tokens."""
        sizes, tensors = self.sizes(position), state_tensors(self.counted(position))
        return sum(size * math.prod(x.shape[2:]) * x.element_size() for size, x in zip(sizes, tensors, strict=True))

    def seen(self, batch: int, device: torch.device) -> Int[Tensor, " batch"]:
        """Tokens seen by each row."""
        if isinstance(self.position, Tensor):
            return self.position
        return torch.full((batch,), self.position, device=device)


Step = Callable[..., tuple[Tensor, S]]
"""From a state of rows that have seen equally many tokens, and tensors of new ones, to an output and the next state."""


def by_document(step: Step[S], state: S, inputs: Sequence[Tensor], layout: Layout | None = None) -> tuple[Tensor, S]:
    """A step for documents wherever they begin, and the state after the last token of each row.

    inputs: tensors [batch, length, …] of the new tokens. Rows that are at different places are copied.
    """
    batch, length = inputs[0].shape[:2]
    if layout is None and isinstance(state.position, int):
        return step(state, *inputs)
    device = inputs[0].device
    starts = torch.zeros(batch, length, dtype=torch.bool, device=device) if layout is None else layout.starts
    if not starts.numel():
        return step(state.at(0), *inputs)[0], state
    order, groups = group_runs(starts, state.seen(batch, device))
    column = torch.arange(length, device=device).expand(batch, -1)
    sizes = [(len(rows), size) for _, rows, size in groups]
    parts = zip(*(as_rows(x, order, sizes) for x in (column, *inputs)), strict=True)
    outputs, ends = [], []
    for (before, rows, _), (place, *given) in zip(groups, parts, strict=True):
        y, after = step(state.at(before, rows), *given)
        outputs.append(y)
        last = place[:, -1] == length - 1
        ends.append((after, rows[last], last.nonzero().flatten()))
    y = put_back(outputs, order, (batch, length))
    ended = starts.new_zeros(batch) if layout is None else layout.padding[:, -1]
    return y, together([end for end in ends if len(end[1])], ended)


def group_runs(
    starts: Bool[Tensor, "batch length"], seen: Int[Tensor, " batch"]
) -> tuple[Int[Tensor, " tokens"], list[tuple[int, Int[Tensor, " runs"], int]]]:
    """Runs of tokens, each of one document, in groups that are equally long and go on from equally many tokens.

    starts: True where a document begins. seen: tokens that came before of the document that each row goes on with.
    Gives the tokens in the order of the groups, as indices into [batch · length], and for each group how many tokens
    came before, the rows in which its runs are, and how long these are.
    """
    length = starts.shape[1]
    begins = starts.clone()
    begins[:, 0] = True
    run = begins.flatten().cumsum(0) - 1
    first = begins.flatten().nonzero().flatten()
    row = first.div(length, rounding_mode="floor")
    before = torch.where(starts.flatten()[first], 0, seen[row])
    kind, order = (before * (length + 1) + run.bincount()).sort(stable=True)
    distinct, count = kind.unique_consecutive(return_counts=True)
    groups = [
        (each // (length + 1), rows, each % (length + 1))
        for each, rows in zip(distinct.tolist(), row[order].split(count.tolist()), strict=True)
    ]
    return order.argsort()[run].argsort(stable=True), groups


def together(ends: Sequence[tuple[S, Tensor, Tensor]], ended: Bool[Tensor, " batch"]) -> S:
    """One state out of several. For each, the rows of the batch that it has the end of, and which of its own they are;
    and which rows end in padding, after which nothing is left."""
    states = [state for state, _, _ in ends]
    order = torch.cat([rows for _, rows, _ in ends]).argsort()
    numbers = torch.cat([torch.full_like(rows, int(state.position)) for state, rows, _ in ends])  # type: ignore[arg-type]
    position = torch.where(ended, 0, numbers[order])
    joined = []
    for same in zip(*(state_tensors(state) for state in states), strict=True):
        most = max(x.shape[1] for x in same)
        room = [0, 0] * (same[0].ndim - 2)
        chosen = [
            functional.pad(x.index_select(0, own), (*room, 0, most - x.shape[1]))
            for x, (_, _, own) in zip(same, ends, strict=True)
        ]
        joined.append(torch.cat(chosen).index_select(0, order))
    tensors = iter(joined)
    whole = map_state(lambda _: next(tensors), states[0])
    alike = bool((position == position[0]).all())
    return whole.at(int(position[0])) if alike else whole.counted(position)
