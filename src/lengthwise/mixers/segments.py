"""Documents read in segments of n tokens, something being carried from each to the next.

    segment τ of a document: its tokens τ n … τ n + n − 1

Rows are in step where all are at the same place of a segment. What is written for such rows alone works on all: each
document of a call becomes a row of its own, rows of equal place and length are read together, and padding by nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.contract import Layout, SequenceModule, State, StateTree, joined, map_state
from lengthwise.errors import InputError
from lengthwise.ops.document_rows import as_rows, put_back


@dataclass(frozen=True)
class OutOfStep(State):
    """The states of rows that are out of step: that of row r is row r of states[which[r]].

    Each of the states, which differ in form, has a row for every row of the batch, so that rows can be chosen from it
    as from any state; those of rows that another one speaks for mean nothing.
    """

    which: Int[Tensor, " batch"]
    states: tuple[StateTree, ...]


@dataclass(frozen=True)
class Run:
    """The tokens of a document in a row of a call.

    begin: of its first token, counted over all rows. read: how many tokens are read, from `length` on of zeros.
    source: the number of the state that it goes on from, −1 where its document begins. stays: whether the row's state
    afterwards is that of this run.
    """

    row: int
    begin: int
    length: int
    read: int
    source: int
    stays: bool


class Segmented(SequenceModule):
    """A causal module that reads documents in segments. Subclasses write `advance` for rows in step.

    segment: n. backprop: gradients reach back over so many segments, counted in groups from the beginning of the
    document; None for all. Raises InputError for either below 1.
    """

    def __init__(self, segment: int, backprop: int | None) -> None:
        super().__init__()
        if segment < 1:
            raise InputError(f"a segment must have at least 1 token, got {segment}")
        if backprop is not None and backprop < 1:
            raise InputError(f"backprop counts segments and must be at least 1, got {backprop}; none is for all")
        self.segment, self.backprop = segment, backprop

    def advance(
        self, x: Float[Tensor, "batch length dim"], state: StateTree
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """Output and state, as `forward` gives them, of rows in step that are one document each."""
        raise NotImplementedError

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """The output of every token, and the state after the last; 0 for padding."""
        if layout is not None and not x.numel():
            layout = None
        starts = None if layout is None else layout.starts
        if starts is None or not starts.any():
            if not isinstance(state, OutOfStep):
                return self.advance(x, state)
            if x.shape[1] <= 1:
                return self._alone(x, state)
        elif starts[:, 0].all() and not starts[:, 1:].any() and layout is not None and not layout.padding.any():
            return self.advance(x, None)
        return self._apart(x, state, layout)

    def pieces(self, x: Float[Tensor, "batch length ..."], place: int) -> tuple[Tensor, ...]:
        """The tokens that lie in one segment each, where the first is at `place` of its segment."""
        length, first = x.shape[1], min(self.segment - place, x.shape[1])
        whole, rest = divmod(length - first, self.segment)
        return x.split([size for size in (first, *[self.segment] * whole, rest) if size], 1)

    def cut(self, passed: int) -> tuple[bool, int]:
        """Whether gradients end at the end of a segment before which `passed` segments were in its group, and what
        `passed` is after it."""
        if self.backprop is None:
            return False, 0
        return passed + 1 == self.backprop, (passed + 1) % self.backprop

    def _alone(self, x: Tensor, state: OutOfStep) -> tuple[Tensor, OutOfStep]:
        """A token for each row: every state reads all of them, so that none is copied."""
        outputs, states = zip(*(self.advance(x, each) for each in state.states), strict=True)
        rows = torch.arange(len(x), device=x.device)
        return torch.stack(outputs)[state.which, rows], OutOfStep(state.which, states)

    def _apart(self, x: Tensor, state: StateTree, layout: Layout | None) -> tuple[Tensor, StateTree]:
        """Each run a row of its own."""
        (batch, length), device = x.shape[:2], x.device
        sources = state.states if isinstance(state, OutOfStep) else (state,)
        groups: dict[tuple[int, int, bool], list[Run]] = {}
        for run in self._runs(batch, length, state, layout):
            groups.setdefault((run.source, run.read, run.stays), []).append(run)
        places = [place for runs in groups.values() for place in _places(runs, batch * length, device)]
        order = torch.cat(places) if places else torch.zeros(0, dtype=torch.long, device=device)
        sizes = [(len(runs), read) for (_, read, _), runs in groups.items()]
        parts = as_rows(torch.cat([x.flatten(0, 1), x.new_zeros(1, x.shape[2])])[None], order, sizes)
        outputs, after = [x[:0]], []
        for ((source, _, stays), runs), part in zip(groups.items(), parts, strict=True):
            rows = torch.tensor([run.row for run in runs], device=device)
            before = None if source < 0 else chosen(sources[source], rows)
            y, last = self.advance(part, before)
            outputs.append(y)
            if stays:
                after.append((rows, last))
        missing = sorted(set(range(batch)) - {int(row) for rows, _ in after for row in rows})
        if missing:  # after padding nothing goes on
            after.append((torch.tensor(missing, device=device), self.advance(x[missing, :0], None)[1]))
        y = put_back(outputs, order, (1, batch * length + 1))[0, :-1]
        return y.unflatten(0, (batch, length)), together(after, batch)

    def _runs(self, batch: int, length: int, state: StateTree, layout: Layout | None) -> Iterator[Run]:
        """The runs of a call, without padding."""
        which = state.which.tolist() if isinstance(state, OutOfStep) else [-1 if state is None else 0] * batch
        if layout is None:
            yield from (Run(row, row * length, length, length, which[row], True) for row in range(batch))
            return
        rows, begins, sizes = layout.runs()
        table = torch.stack([rows, begins, sizes, layout.starts[rows, begins].long()], 1)
        for row, begin, size, fresh in table.tolist():
            stays = begin + size == length
            read = size if stays else self._rounded(size)
            yield Run(row, row * length + begin, size, read, -1 if fresh else which[row], stays)

    def _rounded(self, length: int) -> int:
        """A length not below, of which there are few: documents that have ended can be read on without harm, so that
        more of them are read together."""
        whole, rest = divmod(length, self.segment)
        return whole * self.segment + (min(self.segment, 1 << (rest - 1).bit_length()) if rest else 0)


def _places(runs: list[Run], end: int, device: torch.device) -> Iterator[Int[Tensor, " read"]]:
    """The place of each token that is read, counted over all rows; `end` where there is none."""
    for run in runs:
        place = torch.arange(run.begin, run.begin + run.read, device=device)
        yield place.masked_fill(place >= run.begin + run.length, end)


def chosen(state: StateTree, rows: Int[Tensor, " rows"]) -> StateTree:
    """The given rows of a state."""
    return map_state(lambda t: t.index_select(0, rows), state)


def form(state: StateTree) -> Any:
    """What states have in common that can be rows of one."""
    if isinstance(state, Tensor):
        return tuple(state.shape[1:]), state.dtype
    if isinstance(state, tuple):
        return tuple(map(form, state))
    if isinstance(state, State):
        return type(state), tuple(form(getattr(state, f.name)) for f in fields(state))  # type: ignore[arg-type]
    return state


def together(states: list[tuple[Int[Tensor, " _"], StateTree]], batch: int) -> StateTree:
    """One state of all rows, from states of some rows each; `OutOfStep` where their forms differ."""
    forms: dict[Any, list[tuple[Tensor, StateTree]]] = {}
    for rows, state in states:
        forms.setdefault(form(state), []).append((rows, state))
    which = states[0][0].new_zeros(batch)
    found = []
    for number, same in enumerate(forms.values()):
        rows = torch.cat([rows for rows, _ in same])
        which[rows] = number
        index = rows.new_zeros(batch)
        index[rows] = torch.arange(len(rows), device=rows.device)
        found.append(chosen(joined([state for _, state in same]), index))
    return found[0] if len(found) == 1 else OutOfStep(which, tuple(found))
