"""Memory vectors that layers read at the beginning of each segment and write at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.contract import SequenceModule, State, StateTree
from lengthwise.errors import InputError
from lengthwise.mixers.segments import Segmented
from lengthwise.models.stack import Stack, declare
from lengthwise.ops.chunks import state_dtype
from lengthwise.positions.position import Position


@dataclass(frozen=True)
class RecurrentMemoryState(State):
    """The memory of the open segment, in float32 or wider, and the state of the layers inside of it.

    place: tokens of the open segment; at 0 the layers have read nothing. passed: segments since gradients ended.
    """

    memory: Float[Tensor, "batch memory dim"]
    place: int = 0
    passed: int = 0
    layers: StateTree = None


class RecurrentMemory(Segmented):
    """Causal layers that read each segment with m memory vectors before it and the same m behind it.

        U_τ = [M_τ ; X_τ ; M_τ]          O_τ = norm(layers(U_τ))          n + 2m rows, causal throughout
        y_τ = O_τ[m … m + n − 1]          M_{τ+1} = O_τ[m + n … n + 2m − 1]          M_1 = M_0, learned

    The rows before a segment are read by its tokens; those behind it see the whole segment, and what comes out of them
    is the memory of the next. Layers begin anew with each segment and so do their positions, memory included: row i of
    U has position i. Since memory is what comes after the norm, the norm is the model's last one and stands here.

    tokens: m; with 0 the segments are read each on its own. segment: n, counted from the beginning of each document.
    backprop: K, the number of segments through which gradients reach; the memory is cut from the graph before every
    K-th segment. None cuts nothing. position: one that is added to embeddings is added to the rows of U, by their
    place in it; what a model adds to its embeddings itself goes by the place in the document. Every other position is
    that of the layers inside.
    M_0 begins as N(0, 1), as the embeddings of a model do.

    Costs L (n + 2m)² / n of attention. State: M, m · dim numbers, and what the layers keep of the open segment; a full
    one leaves M alone. The rows of M before a segment see each other causally, as in the authors' wrapper.
    Bulatov et al. 2022, arXiv 2207.06881. Raises InputError for sizes out of range and layers that aren't causal.
    """

    residual = False
    normed = True
    growth = "window"

    def __init__(
        self,
        modules: Sequence[SequenceModule],
        norm: nn.Module,
        dim: int,
        *,
        tokens: int = 8,
        segment: int = 512,
        backprop: int | None = None,
        position: Position | None = None,
    ):
        super().__init__(segment, backprop)
        if tokens < 0:
            raise InputError(f"tokens counts memory vectors and must be at least 0, got {tokens}")
        self.dim, self.tokens, self.chunk = dim, tokens, segment
        self.stack = Stack(modules)
        declare(self, [self.stack])
        if not self.causal:
            raise InputError("recurrent memory is written after a segment and needs layers that are causal")
        self.growth = "window"
        self.receptive_field = None if tokens else min(segment, self.receptive_field or segment)
        if backprop is not None and tokens:
            why = f"memory is cut from the graph after every {backprop} segments: truncated back-propagation"
            self.breaks = {**self.breaks, "gradients": why}  # type: ignore[misc]
        self.norm = nn.Identity() if self.stack.normed else norm
        self.position = position if position is not None and position.has("embed") else None
        self.memory = nn.Parameter(torch.randn(tokens, dim)) if tokens else None

    def advance(
        self, x: Float[Tensor, "batch length dim"], state: RecurrentMemoryState | None
    ) -> tuple[Float[Tensor, "batch length dim"], RecurrentMemoryState]:
        """Segment after segment."""
        state = self.initial(x) if state is None else state
        outputs = [x[:, :0]]
        for piece in self.pieces(x, state.place):
            y, state = self.read(piece, state)
            outputs.append(y)
        return torch.cat(outputs, 1), state

    def initial(self, x: Float[Tensor, "batch length dim"]) -> RecurrentMemoryState:
        """The state before the first token."""
        wide = state_dtype(x)
        if self.memory is None:
            return RecurrentMemoryState(x.new_zeros(len(x), 0, x.shape[2], dtype=wide))
        return RecurrentMemoryState(self.memory.to(wide).expand(len(x), -1, -1))

    def read(
        self, x: Float[Tensor, "batch length dim"], state: RecurrentMemoryState
    ) -> tuple[Float[Tensor, "batch length dim"], RecurrentMemoryState]:
        """Tokens of the open segment, with the memory before them where they begin it and behind where they end it."""
        begins, place = state.place == 0, state.place + x.shape[1]
        ends = place == self.segment
        memory = state.memory.to(x.dtype)
        rows = torch.cat([*[memory] * begins, x, *[memory] * ends], 1)
        first = 0 if begins else self.tokens + state.place
        if self.position is not None:
            rows = self.position.embed(rows, torch.arange(first, first + rows.shape[1], device=x.device))
        o, layers = self.stack(rows, state.layers)
        o = self.norm(o)
        skipped = self.tokens if begins else 0
        y, written = o[:, skipped : skipped + x.shape[1]], o[:, skipped + x.shape[1] :]
        if not ends:
            return y, RecurrentMemoryState(state.memory, place, state.passed, layers)
        cut, passed = self.cut(state.passed)
        written = written.to(state.memory.dtype)
        return y, RecurrentMemoryState(written.detach() if cut else written, 0, passed)

    def state_nbytes(self, length: int) -> int:
        """The memory, and what the layers keep of the open segment and the memory before it."""
        place = length % self.segment
        dtype = state_dtype(next(self.stack.parameters(), None))
        kept = self.tokens * self.dim * dtype.itemsize
        return kept + (self.stack.state_nbytes(self.tokens + place) if place else 0)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"tokens={self.tokens}, segment={self.segment}, backprop={self.backprop}"
