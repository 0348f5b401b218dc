"""One table of encoded positions for all that asks in a pass, and for longer where nothing is learned."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lengthwise.errors import InputError, unknown
from lengthwise.positions import seqpe_losses
from lengthwise.positions.seqpe_encoder import DigitEncoder

PIECE = 4096
"""Positions encoded at once where no graph is kept."""

SPARE = 64
"""The least number of positions that a table which grows gets beyond those that are asked for."""


@dataclass(frozen=True)
class Objective:
    """The losses of the encoder and the random shift of its windows.

    contrast, transfer: weights of the two losses. shift: the probability that a pass in training has its positions
    elsewhere. trained: the length of the window that far ones shall behave as, that of the pass where it is None.
    samples: pivots of the contrastive loss, and far windows of the other. choices: candidates of each pivot, and places
    of each window. heads: how many parts of e meet in a similarity of their own in the transfer loss. reduction: of
    that loss, see `seqpe_losses.transfer_loss`.
    """

    contrast: float = 0.1
    transfer: float = 0.1
    shift: float = 0.1
    trained: int | None = None
    samples: int = 16
    choices: int = 32
    heads: int = 1
    reduction: str = "mean"

    def __post_init__(self) -> None:
        if min(self.contrast, self.transfer) < 0 or not 0 <= self.shift <= 1:
            raise InputError(
                "contrast and transfer must be at least 0 and shift a probability, got "
                f"{self.contrast}, {self.transfer} and {self.shift}"
            )
        for name, size in (("samples", self.samples), ("choices", self.choices), ("trained", self.trained or 1)):
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        if self.reduction not in seqpe_losses.REDUCTIONS:
            raise unknown("reduction", self.reduction, seqpe_losses.REDUCTIONS)


@dataclass
class Table:
    """e of the positions from `first` on, and what was made of it.

    made: the pass in which it was made. holds: the parameters that it holds for. graph: whether gradients can go
    through it. more: what its owner makes of e, by name.
    """

    first: int
    e: Float[Tensor, "n outputs"]
    made: int
    holds: tuple[Any, ...]
    graph: bool
    more: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The first position after the table."""
        return self.first + len(self.e)

    def once(self, name: str, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """What `make` gives, made once."""
        if name not in self.more:
            with apart():
                self.more[name] = make()
        return self.more[name]


class Encodings(nn.Module):
    """The encoder with the table of the positions that are in use.

    Between two `begin_pass` one table serves all layers and all rows of a batch. Without a model that begins passes,
    each call that wants gradients makes its own. Where no gradients are wanted, the table is kept for as long as the
    parameters stay what they are (by their addresses and version counters, which assignments through `.data` don't
    count), and grows with the positions that are asked for.

    also: what its owner makes more of e with, on which the table depends too. grid: the sizes of all axes but the
    first, by which a place in a row of tokens is turned into coordinates; empty for one axis. In training the losses of
    `objective` are left in `auxiliary` once for each table that is made, with one start for all rows where windows are
    shifted. Compiled passes have neither losses nor shifts, since they make no table.
    """

    of_pass: ClassVar = ("number", "begun", "start", "table")

    def __init__(
        self,
        encoder: DigitEncoder,
        objective: Objective,
        grid: tuple[int, ...] = (),
        also: tuple[nn.Module, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder, self.objective, self.grid = encoder, objective, grid
        # The modules' own dictionaries, since a search for parameters takes as long as attention to some keys.
        self.owned = [m._parameters for whole in (encoder, *also) for m in whole.modules() if m._parameters]
        self.auxiliary: Tensor | None = None
        self.table: Table | None = None
        self.number, self.begun = 0, False
        self.start: Tensor | None = None

    @property
    def end(self) -> int:
        """The first place that can't be read."""
        return self.encoder.positions * math.prod(self.grid)

    def begin_pass(self) -> None:
        """What the last pass made is of no use to the next where anything is learned."""
        self.number, self.begun, self.start = self.number + 1, True, None
        if self.table is not None and (self.table.graph or self.training):
            self.table = None

    def train(self, mode: bool = True) -> Encodings:
        """The same; a table of one mode isn't one of the other."""
        self.table, self.auxiliary, self.start = None, None, None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Copies begin without a table, whose graph can't be copied."""
        return {**self.__dict__, "table": None, "auxiliary": None, "start": None}

    def covering(self, low: int, high: int) -> Table:
        """A table that has the positions from `low` up to `high`, which isn't among them."""
        graph = torch.is_grad_enabled() and any(p.requires_grad for p in self._weights())
        table = self._kept(graph)
        if table is None:
            with apart():
                table = self.table = self._make(low, high, graph)
        elif low < table.first or high > table.end:
            low, high = min(low, table.first), max(high, table.end)
            with apart():
                made = self._make(low, high, graph, learn=False) if table.graph else self._grown(low, high)
            table = self.table = made
        return table

    def each(self, positions: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape outputs"]:
        """e of every position, without a table: for compiled graphs, which can't read how far positions go."""
        return self.encoder(self.coordinates(positions.flatten())).unflatten(0, positions.shape)

    def coordinates(self, places: Int[Tensor, " n"]) -> Int[Tensor, "n axes"]:
        """The coordinates of places in a row, the last axis running fastest."""
        found = []
        for side in reversed(self.grid):
            found.append(places % side)
            places = places.div(side, rounding_mode="floor")
        return torch.stack([places, *reversed(found)], dim=-1)

    def _kept(self, graph: bool) -> Table | None:
        """The table that there is, where it still holds."""
        table = self.table
        if table is None or (graph and not table.graph) or table.holds != self._holds():
            return None
        same_pass = self.begun and table.made == self.number
        return table if same_pass or not (table.graph or self.training) else None

    def _weights(self) -> Iterator[nn.Parameter]:
        for own in self.owned:
            yield from (p for p in own.values() if p is not None)

    def _holds(self) -> tuple[Any, ...]:
        """What a table depends on."""
        weights = [(p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in self._weights()]
        return (self.grid, torch.is_inference_mode_enabled(), *weights)

    def _make(self, low: int, high: int, graph: bool, learn: bool = True) -> Table:
        places = torch.arange(low, high, device=self.encoder.summary.device)
        coordinates, shifted = self.coordinates(places), False
        if self.training and self.begun:
            self.start = self._drawn(high) if self.start is None else self.start
            shifted = bool(self.start.any())
            coordinates = coordinates + self.start
        if graph and self.training and learn:
            e = self._learning(coordinates, low, high, shifted)
        elif graph:
            e = self.encoder(coordinates)
        else:
            e = torch.cat([self.encoder(part) for part in coordinates.split(PIECE)])
        table = Table(low, e, self.number, self._holds(), graph)
        if graph and e.requires_grad:
            e.register_hook(self._used)
        return table

    def _grown(self, low: int, high: int) -> Table:
        """The table with more positions on either side, and some to spare, so that one more token seldom copies it."""
        old = self.table
        assert old is not None
        if high > old.end and not self.training:
            high = max(high, min(self.end, high + max(SPARE, (high - low) // 4)))
        before, after = (
            [self._make(first, end, graph=False).e] if first < end else []
            for first, end in ((low, old.first), (old.end, high))
        )
        return Table(low, torch.cat([*before, old.e, *after]), old.made, old.holds, False)

    def _used(self, gradient: Tensor | None) -> None:  # noqa: ARG002
        """The backward pass has gone through the table: nothing may be built on it any more."""
        self.table = None

    def _drawn(self, high: int) -> Int[Tensor, " axes"]:
        """Where the window of this pass begins: at 0, or now and then elsewhere."""
        device = self.encoder.summary.device
        if float(torch.rand(())) >= self.objective.shift:
            return torch.zeros(1 + len(self.grid), dtype=torch.long, device=device)
        return seqpe_losses.draw_shift(self._size(high), self.encoder.positions, device)

    def _size(self, length: int) -> tuple[int, ...]:
        """The sides of a window of so many places."""
        return -(-length // math.prod(self.grid)), *self.grid

    def _learning(self, coordinates: Tensor, low: int, high: int, shifted: bool) -> Tensor:
        """e of the window, and the losses beside it, in one call of the encoder."""
        goal, encoder, device = self.objective, self.encoder, coordinates.device
        asked = [coordinates]
        if goal.contrast:
            pivots = torch.randint(encoder.positions, (goal.samples, encoder.axes), device=device)
            drawn = seqpe_losses.draw_candidates(pivots, goal.choices, encoder.positions, encoder.digits)
            asked += [pivots, drawn.flatten(0, 1)]
        transfers = bool(goal.transfer) and not shifted
        if transfers:
            length = high - low if goal.trained is None else min(goal.trained, high - low)
            places = seqpe_losses.draw_places(goal.samples, goal.choices, length, device)
            far = seqpe_losses.draw_far(goal.samples, self._size(length), encoder.positions, device)
            asked.append(self.coordinates(places.flatten()) + far.repeat_interleave(places.shape[1], 0))
        window, *rest = encoder(torch.cat(asked)).split([len(part) for part in asked])
        loss = window.new_zeros(())
        if goal.contrast:
            near = seqpe_losses.nearest(pivots, drawn)
            of_drawn = rest[1].unflatten(0, drawn.shape[:2])
            loss = loss + goal.contrast * seqpe_losses.contrastive_loss(rest[0], of_drawn, near)
        if transfers:
            teacher, student = window.detach()[places], rest[-1].unflatten(0, places.shape)
            loss = loss + goal.transfer * seqpe_losses.transfer_loss(teacher, student, goal.heads, goal.reduction)
        self.auxiliary = loss if goal.contrast or transfers else None
        return window


def apart() -> contextlib.AbstractContextManager:
    """Keeps what the table's graph saves out of a checkpoint around the layer that asks for it first.

    The repetition of that layer finds the table made, and would miss what making it had saved.
    """
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
        return contextlib.nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda t: t)
