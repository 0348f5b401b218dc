"""The contract: everything that processes a sequence is a resumable function.

    y, state = module(x, state=None, layout=None)          x: [batch, length, dim]

Cutting a causal sequence anywhere and passing the state on gives the same result as running it whole. Mixers,
channel mixers, residual branches, stacks and whole models all have this signature, so they nest. The laws in
`lengthwise.laws` verify what a module declares here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lengthwise.errors import InputError

Growth = Literal["constant", "window", "linear"]
"""How a state grows with the number of tokens seen."""

S = TypeVar("S", bound="State")  # not typing.Self, which run-time checks of annotations only know on whole classes


class State:
    """What a module keeps between two calls: a frozen dataclass of tensors, numbers and further states.

    States are values: going on from a state never changes it, so one state can be continued any number of times. The
    first dimension of every tensor is the batch.
    """

    def map(self: S, fn: Callable[[Tensor], Tensor]) -> S:
        """The same state with `fn` applied to each tensor."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return type(self)(**{name: map_state(fn, value) for name, value in fields.items()})

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that the state is made of."""
        return state_nbytes(self)

    def detach(self: S) -> S:
        """The state cut off from the graph, for truncated back-propagation."""
        return self.map(Tensor.detach)

    def to(self: S, device: Any = None, dtype: torch.dtype | None = None) -> S:
        """The state on another device, and its real numbers in another dtype."""
        return self.map(lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))

    def select(self: S, index: Int[Tensor, " rows"]) -> S:
        """The state of the given rows of the batch, in that order, as beam search needs it."""
        return self.map(lambda t: t.index_select(0, index.to(t.device)))

    def fork(self: S) -> S:
        """A state to go on from on its own. States are values, so this is the state itself."""
        return self


StateTree = Any
"""None, a tensor, a number, a State, or a tuple of state trees."""


def map_state(fn: Callable[[Tensor], Tensor], state: StateTree) -> StateTree:
    """Apply `fn` to every tensor of a state tree."""
    if isinstance(state, Tensor):
        return fn(state)
    if isinstance(state, State):
        return state.map(fn)
    if isinstance(state, tuple):
        return tuple(map_state(fn, item) for item in state)
    return state


def state_tensors(state: StateTree) -> Iterator[Tensor]:
    """Every tensor of a state tree, in a fixed order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, State):
        for field in dataclasses.fields(state):  # type: ignore[arg-type]
            yield from state_tensors(getattr(state, field.name))
    elif isinstance(state, tuple):
        for item in state:
            yield from state_tensors(item)


def state_nbytes(state: StateTree) -> int:
    """Bytes of all tensors of a state tree. A cache counts what it uses, not what it has reserved."""
    return sum(t.numel() * t.element_size() for t in state_tensors(state))


def joined(states: Sequence[StateTree]) -> StateTree:
    """States of equal form as that of a batch of all their rows, one after the other."""
    tensors = iter([torch.cat(same) for same in zip(*map(state_tensors, states), strict=True)])
    return map_state(lambda _: next(tensors), states[0])


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch are.

    positions: [batch, length], the place of each token in its document, counted from 0.
    documents: [batch, length], the number of the document that each token belongs to; negative is padding.
    marked: [batch, length], True for the tokens that a model treats in a way of their own, where it has one: those with
    global attention in Longformer. None where there is none of them.

    Several documents packed in one row don't see each other. A document starts where its number changes, and at
    position 0; a first token with another position goes on with the document of the state. Padding is a document
    that nobody reads: each padding token stands alone, and what it gives means nothing. Since a padding token ends
    the document before it, pad on the left to go on from the state afterwards.

    Raises InputError for positions below 0, and for those that don't go on by one inside a document.
    """

    positions: Int[Tensor, "batch length"]
    documents: Int[Tensor, "batch length"]
    marked: Bool[Tensor, "batch length"] | None = None

    def __post_init__(self) -> None:
        if self.positions.shape != self.documents.shape:
            shapes = tuple(self.positions.shape), tuple(self.documents.shape)
            raise InputError(f"a layout has a position and a document for each token, got shapes {shapes}")
        if not torch.compiler.is_compiling():
            self._check_positions()

    def _check_positions(self) -> None:
        wrong = (self.positions < 0) & ~self.padding
        step = self.positions.diff(dim=1) != 1
        wrong[:, 1:] |= step & ~self.starts[:, 1:]
        if not wrong.any():
            return
        row, place = wrong.nonzero()[0].tolist()
        found = int(self.positions[row, place])
        if found < 0:
            raise InputError(f"positions count from 0, got {found} for token {place} of row {row}")
        before = int(self.positions[row, place - 1])
        raise InputError(
            f"token {place} of row {row} is at position {found} after {before}: inside a document positions go on by "
            "one, and a new document begins at 0 or has another number"
        )

    @staticmethod
    def packed(lengths: Sequence[Sequence[int]], device: Any = None) -> Layout:
        """Rows of documents of the given lengths, one list a row. Shorter rows end in padding."""
        width = max((sum(row) for row in lengths), default=0)
        positions = torch.zeros(len(lengths), width, dtype=torch.long)
        documents = torch.full((len(lengths), width), -1, dtype=torch.long)
        for r, row in enumerate(lengths):
            begin = 0
            for number, length in enumerate(row):
                positions[r, begin : begin + length] = torch.arange(length)
                documents[r, begin : begin + length] = number
                begin += length
        return Layout(positions.to(device), documents.to(device))

    @staticmethod
    def padded(lengths: Sequence[int], side: Literal["left", "right"] = "left", device: Any = None) -> Layout:
        """One document a row, of the given lengths, padded to the longest on one side."""
        layout = Layout.packed([[n] for n in lengths], device)
        if side == "right":
            return layout
        if side != "left":
            raise InputError(f"side must be 'left' or 'right', got {side!r}")
        width = layout.positions.shape[1]
        shift = torch.tensor([width - n for n in lengths], device=device)
        index = (torch.arange(width, device=device) - shift[:, None]) % max(width, 1)
        return Layout(layout.positions.gather(1, index), layout.documents.gather(1, index))

    @staticmethod
    def numbered(documents: Int[Tensor, "batch length"]) -> Layout:
        """The layout of rows whose documents are given by number, each counted from its first token in the row."""
        index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
        changed = torch.ones_like(documents, dtype=torch.bool)
        changed[:, 1:] = documents[:, 1:] != documents[:, :-1]
        begin = torch.where(changed, index, 0).cummax(dim=1).values
        return Layout(torch.where(documents < 0, 0, index - begin), documents)

    @staticmethod
    def begun(starts: Bool[Tensor, "batch length"], seen: Int[Tensor, " batch"] | None = None) -> Layout:
        """The layout of rows in which a document begins wherever `starts` is True.

        Tokens before the first of them go on with the state's document, of which `seen` tokens came before: one if
        None, for modules to which it is enough that the document goes on.
        """
        index = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
        begin = torch.where(starts, index, -1).cummax(dim=1).values
        before = torch.ones_like(index[:, :1]) if seen is None else seen[:, None]
        return Layout(torch.where(begin < 0, index + before, index - begin), starts.long().cumsum(dim=1))

    @property
    def starts(self) -> Bool[Tensor, "batch length"]:
        """True where a token sees nothing before it: the first of its document, and every padding token."""
        first = (self.positions == 0) | (self.documents < 0)
        changed = self.documents[:, 1:] != self.documents[:, :-1]
        return torch.cat([first[:, :1], first[:, 1:] | changed], dim=1)

    @property
    def padding(self) -> Bool[Tensor, "batch length"]:
        """True where there is no token."""
        return self.documents < 0

    def runs(self) -> tuple[Int[Tensor, " runs"], Int[Tensor, " runs"], Int[Tensor, " runs"]]:
        """The row of each run of tokens of one document, where it begins there, and how many they are. Padding is in
        none."""
        starts = self.starts
        starts[:, :1] = True
        row, begin = starts.nonzero().unbind(1)
        place = row * starts.shape[1] + begin
        size = place.diff(append=place.new_tensor([starts.numel()]))
        real = ~self.padding[row, begin]
        return row[real], begin[real], size[real]

    def slice(self, begin: int, end: int | None = None) -> Layout:
        """The layout of the tokens from `begin` to `end`, for a call that goes on from the state at `begin`."""
        return self._each(lambda t: t[:, begin:end])

    def reversed(self) -> Layout:
        """The layout of the same tokens read backwards, for modules that run in both directions."""
        number = self.starts.long().cumsum(dim=1)
        layout = Layout.numbered(torch.where(self.padding, -1, number).flip(1))
        return layout if self.marked is None else layout.mark(self.marked.flip(1))

    def select(self, index: Int[Tensor, " rows"]) -> Layout:
        """The layout of the given rows."""
        return self._each(lambda t: t[index])

    def to(self, device: Any) -> Layout:
        """The layout on another device."""
        return self._each(lambda t: t.to(device))

    def mark(self, marked: Bool[Tensor, "batch length"]) -> Layout:
        """The same layout with these tokens marked, and no others."""
        return dataclasses.replace(self, marked=marked)

    def _each(self, fn: Callable[[Tensor], Tensor]) -> Layout:
        """The layout with `fn`, which leaves neighbours together, applied to each of its tensors."""
        layout = object.__new__(Layout)  # what was checked isn't checked again: that reads values back from the device
        for name, tensor in (("positions", self.positions), ("documents", self.documents), ("marked", self.marked)):
            object.__setattr__(layout, name, None if tensor is None else fn(tensor))
        return layout


class SequenceModule(nn.Module):
    """A resumable function of a sequence, and what it declares of itself. The laws verify the declarations.

    causal: no output depends on a later input. A module that isn't causal returns None as its state.
    growth: how the state grows with the tokens seen: "constant", "window" (bounded by one) or "linear".
    receptive_field: the number of latest inputs that an output can depend on; None where there is no limit.
    ratio: output tokens per input token; 1 except for what shortens the sequence.
    pattern: who sees whom, a value of `ops.patterns`, for a module that reads by one at most; None where none is known.
    chunk: the tokens that the fast form takes at once, where it works in chunks; the laws test lengths around it.
    compiles: works under `torch.compile` without leaving the graph.
    breaks: laws that the module breaks on purpose, with the reason and the bound that holds instead.
    inherits: arguments that a model passes down unless the expression sets them: "causal", "position", "depth" (the
        residual branches of the model), "layer" (how many parts of the same name come before) and "layers" (how many
        the model has).
    residual: whether it stands on a residual branch of a model, or in place of what it is given.
    prenorm: whether a model norms what it gives to the part; False for one that does it itself.
    normed: what it gives is normed, so that a model that ends with it has no norm after it.
    auxiliary: what its last pass in training mode adds to the loss, or None; see `lengthwise.training.auxiliary`.
    """

    causal: bool = True
    growth: Growth = "constant"
    receptive_field: int | None = None
    ratio: float = 1.0
    pattern: Any = None
    chunk: int | None = None
    compiles: ClassVar[bool] = True
    breaks: ClassVar[dict[str, str]] = {}
    inherits: ClassVar[tuple[str, ...]] = ()
    residual: bool = True
    prenorm: bool = True
    normed: bool = False
    auxiliary: Tensor | None = None

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """Output for every token, and the state to go on from. Without a state the sequence begins here."""
        raise NotImplementedError

    def begin(self, source: Float[Tensor, "batch source dim"], layout: Layout | None = None) -> StateTree:  # noqa: ARG002
        """The state before the first token of what is to answer an encoded source, whose layout is given; None, as
        without a source, for a module that doesn't read it."""
        return None

    def state_nbytes(self, length: int) -> int:
        """Bytes that the state of one sequence takes after `length` tokens: the formula, which a law compares with
        the state itself."""
        raise NotImplementedError
