"""Layers that see the keys and values of previous segments, without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.caches.full import FullCache
from lengthwise.caches.windowed import WindowedCache
from lengthwise.contract import SequenceModule, State, StateTree, map_state
from lengthwise.errors import InputError
from lengthwise.mixers.attention import Attention
from lengthwise.mixers.segments import Segmented
from lengthwise.models.stack import Stack, declare
from lengthwise.ops.patterns import causal as up_to_itself


@dataclass(frozen=True)
class CachePreviousState(State):
    """The states of the layers, and the tokens of the open segment. passed: segments since gradients ended."""

    layers: StateTree = None
    place: int = 0
    passed: int = 0


class CachePrevious(Segmented):
    """Causal layers in which a segment sees itself and the s segments before it, the cache of Transformer-XL.

        K_τ = [stop(K_{τ−s}) … stop(K_{τ−1}) ; W_k h_τ]          V likewise, in every layer of attention
        token i of segment τ sees the keys of K_τ up to itself

    stop ends gradients. In N layers of attention a token reaches back N s segments. Positions go on through the
    document. What a recurrence keeps goes on too, without gradients.

    segment: n, counted from the beginning of each document. segments: s. backprop: gradients end before every K-th
    segment, 1 in the paper; None ends none.

    Only attention that sees all before it, or a window, is cut short; what else is bounded is left as it is.
    Costs O(L s n). State: the keys and values of at most s n tokens and of the open segment, and what other layers
    keep. Dai et al. 2019, arXiv 1901.02860. Raises InputError for sizes below 1, for layers that aren't causal, and
    for others that keep all they have read.
    """

    residual = False

    def __init__(
        self, modules: Sequence[SequenceModule], *, segment: int = 512, segments: int = 1, backprop: int | None = 1
    ):
        super().__init__(segment, backprop)
        if segments < 1:
            raise InputError(f"segments counts previous segments and must be at least 1, got {segments}")
        self.segments, self.kept = segments, segments * segment
        self.stack = Stack(modules)
        declare(self, [self.stack])
        if not self.causal:
            raise InputError("a cache of previous segments needs layers that are causal")
        parts = [module for module in self.stack.modules() if isinstance(module, SequenceModule)]
        endless = [part for part in parts if part.growth == "linear" and not _inside(part, growth="linear")]
        others = [type(part).__name__ for part in endless if not forgets(part)]
        if others:
            raise InputError(
                f"only attention to all before it can forget what is further back than the cache; {others[0]} can't"
            )
        self.normed = self.stack.normed
        if self.growth != "constant":
            self.growth, self.chunk = "window", segment
        if self.receptive_field is None:
            self.receptive_field = self._reach([part for part in parts if not _inside(part)])
        if backprop is not None:
            why = f"what is kept is cut from the graph after every {backprop} segments: truncated back-propagation"
            self.breaks = {**self.breaks, "gradients": why}  # type: ignore[misc]

    def _reach(self, leaves: list[SequenceModule]) -> int | None:
        """Tokens that an output can depend on, if only attention looks back."""
        looking = [leaf for leaf in leaves if leaf.receptive_field != 1]
        if not all(map(forgets, looking)):
            return None
        return (len(looking) * self.segments + 1) * self.segment

    def advance(
        self, x: Float[Tensor, "batch length dim"], state: CachePreviousState | None
    ) -> tuple[Float[Tensor, "batch length dim"], CachePreviousState]:
        """Segment after segment."""
        state = CachePreviousState() if state is None else state
        outputs = [x[:, :0]]
        for piece in self.pieces(x, state.place):
            y, layers = self.stack(piece, state.layers)
            outputs.append(y)
            place, passed = state.place + piece.shape[1], state.passed
            if place == self.segment:
                cut, passed = self.cut(passed)
                place, layers = 0, shortened(layers, self.kept, self.kept + self.segment, cut)
            state = CachePreviousState(layers, place, passed)
        return torch.cat(outputs, 1), state

    def state_nbytes(self, length: int) -> int:
        """That of the layers, where attention keeps the tokens of the cache and of the open segment alone."""
        place = length % self.segment
        seen = min(length - place, self.kept) + place
        forgotten = sum(
            module.state_nbytes(length) - module.state_nbytes(seen)  # type: ignore[operator]
            for module in self.stack.modules()
            if forgets(module)
        )
        return (self.stack.state_nbytes(length) - forgotten) if length else 0

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"segment={self.segment}, segments={self.segments}, backprop={self.backprop}"


def forgets(module: nn.Module) -> bool:
    """Whether a part is attention of which the keys that are furthest back can be taken away."""
    return type(module) is Attention and (module.window is not None or module.pattern == up_to_itself())


def _inside(module: SequenceModule, growth: str | None = None) -> list[SequenceModule]:
    """The parts inside of a module, of a growth if it is given."""
    inner = [m for m in module.modules() if isinstance(m, SequenceModule) and m is not module]
    return [m for m in inner if growth is None or m.growth == growth]


def shortened(state: StateTree, kept: int, most: int, cut: bool) -> StateTree:
    """A state whose keys and values are those of the last `kept` tokens, which can grow to `most`. cut: from the
    graph."""
    if isinstance(state, tuple):
        return tuple(shortened(item, kept, most, cut) for item in state)
    if isinstance(state, FullCache):
        empty = WindowedCache.empty(most + 1, 0, state.keys, state.values)
        state = replace(empty, seen=state.keys.shape[1], keys=state.keys, values=state.values)
    if isinstance(state, WindowedCache):
        # A view would keep alive what is forgotten.
        state = replace(state, keys=state.keys[:, -kept:].clone(), values=state.values[:, -kept:].clone())
    elif isinstance(state, State):
        inner = {f.name: getattr(state, f.name) for f in fields(state)}  # type: ignore[arg-type]
        state = type(state)(**{name: shortened(value, kept, most, False) for name, value in inner.items()})
    return map_state(Tensor.detach, state) if cut else state
