"""Positions drawn at random in order, so that those of a long sequence are no larger than those seen in training."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from lengthwise.errors import InputError
from lengthwise.ops.bias import Bias
from lengthwise.ops.pattern import Pattern
from lengthwise.positions.position import Position


class Draw(nn.Module):
    """The positions r_0 < r_1 < … that token 0, 1, … of every document get.

        r = the first T of a random order π of 0 … P − 1, sorted

    π: P numbers, drawn from `seed` when this is made and saved with a model. In evaluation r is made of π and T is
    `longest`, so that r doesn't depend on how much of a sequence has been seen. In training every pass has a π of its
    own, from torch's generator, and the first that asks in a pass says what T is: its largest position and one more.
    Where a pass that has begun asks for more later, and where T would be above P or `longest`, InputError says so.
    """

    order: Tensor
    of_pass: ClassVar = ("begun", "drawn")

    def __init__(self, length: int, longest: int, seed: int) -> None:
        super().__init__()
        self.longest = longest
        self.register_buffer("order", torch.empty(length, dtype=torch.long))
        self.begun = False
        self.drawn: Tensor | None = None
        self.redraw(seed)

    @property
    def length(self) -> int:
        """P, how many different positions there are."""
        return len(self.order)

    def redraw(self, seed: int) -> None:
        """Draw π anew."""
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(seed))
        self.order, self.drawn = order.to(self.order.device), None

    def begin_pass(self) -> None:
        """Forget what the last pass drew."""
        self.begun, self.drawn = True, None

    def train(self, mode: bool = True) -> Draw:
        """The same, as a pass in training and one in evaluation don't draw alike."""
        self.drawn = None
        return super().train(mode)

    def places(self, positions: Num[Tensor, "... length"]) -> Int[Tensor, "... length"]:
        """r at these positions. Those below 0, which are no token's, count as 0."""
        if positions.is_floating_point():
            raise InputError("randomised positions are drawn for whole numbers, got fractions")
        if not positions.numel():
            return positions
        drawn = self._list(positions)
        # Reading the values would leave a compiled graph.
        if not torch.compiler.is_compiling() and not self._reaches(drawn, tokens := int(positions.max()) + 1):
            if not self.training or self.begun or tokens > self.length:
                raise InputError(self._too_long(tokens))
            self.drawn = None
            drawn = self._list(positions)
        return drawn[positions.clamp_min(0)]

    def _list(self, positions: Tensor) -> Tensor:
        """r, kept for the pass. Where no pass is begun, evaluation makes it anew, as the order may have been loaded."""
        if self.drawn is not None:
            return self.drawn
        if not self.training:
            drawn = chosen(self.order, self.longest)
        else:
            drawn = chosen(torch.randperm(self.length, device=positions.device), positions.max() + 1)
        if self.training or self.begun:
            self.drawn = drawn
        return drawn

    def _reaches(self, drawn: Tensor, tokens: int) -> bool:
        return tokens <= self.length and bool(drawn[max(tokens, 1) - 1] < self.length)

    def _too_long(self, tokens: int) -> str:
        if tokens > self.length:
            return f"{self.length} positions are too few for {tokens} tokens; build with length={tokens}"
        if not self.training:
            return f"positions are drawn for {self.longest} tokens, got {tokens}; build with longest={tokens}"
        return f"a pass drew positions for fewer than {tokens} tokens: layers may not read a row in pieces in training"

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"length={self.length}, longest={self.longest}"


def chosen(order: Int[Tensor, " length"], count: int | Tensor) -> Int[Tensor, " length"]:
    """The first `count` of an order, sorted, and after them the length, which is no position."""
    # A tensor for a count keeps it on its device, and in a compiled graph.
    first = torch.arange(len(order), device=order.device) < count
    return torch.where(first, order, len(order)).sort().values


class Randomised(Position):
    """Randomised positions: the order of tokens is told, and distances only roughly.

        p_t ← r_t          r: T different numbers of 0 … P − 1, drawn evenly and sorted

    and another encoding is given r in the place of p. So it meets in training all positions that a sequence of up to P
    tokens can have. `Draw` says what T is: in training the length of what a pass reads, in evaluation `longest`.

    position: the encoding that is given r, as in `randomised(fire, length=256)`. length: P. longest: the most tokens
    that a document can have in evaluation, a quarter of P by default; shorter ones get the beginning of the list.
    seed: of the list in evaluation, which is saved with the model.

    One list serves all rows, documents and layers of a model that passes the position down; patterns go by the true
    places. In training a new list is drawn in each pass, so a sequence that is cut there gets another with each piece.
    What a cache holds of positions that are turned into keys is right in evaluation only. Without a model that begins
    passes, a layer in training keeps the list that it drew, until more tokens come.

    Raises InputError for fewer positions than tokens, and fractions of positions. Ruoss et al. 2023, arXiv 2305.16843.
    """

    def __init__(
        self, position: Position | None = None, *, length: int = 2048, longest: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if not isinstance(position, Position):
            raise InputError(f"randomised takes the position that it is for, as in randomised(alibi), got {position!r}")
        longest = max(length // 4, 1) if longest is None else longest
        if not 1 <= longest <= length:
            raise InputError(f"longest must be at least 1 and at most length={length}, got {longest}")
        self.position = position
        self.draw = Draw(length, longest, seed)
        self.hooks, self.per_layer = position.hooks, position.per_layer  # type: ignore[misc]  # those of what it is for

    def for_layer(self) -> Position:
        """The same list for another layer's copy of the encoding, where layers have their own."""
        if not self.per_layer:
            return self
        own = Randomised(self.position.for_layer(), length=self.draw.length, longest=self.draw.longest)
        own.draw = self.draw
        return own

    def begin_pass(self, training: bool) -> None:  # noqa: ARG002
        """A pass in training draws its own list."""
        self.draw.begin_pass()

    def embed(
        self, x: Float[Tensor, "batch length dim"], positions: Num[Tensor, "... length"]
    ) -> Float[Tensor, "batch length dim"]:
        """The embeddings with the drawn positions."""
        return self.position.embed(x, self._places(positions, "embed"))

    def require(self, head_dim: int) -> None:
        """Raises InputError where the encoding does."""
        self.position.require(head_dim)

    def rotate(
        self,
        q: Float[Tensor, "batch queries heads head_dim"],
        k: Float[Tensor, "batch keys kv_heads head_dim"],
        q_positions: Num[Tensor, "... queries"],
        k_positions: Num[Tensor, "... keys"],
    ) -> tuple[Float[Tensor, "batch queries heads head_dim"], Float[Tensor, "batch keys kv_heads head_dim"]]:
        """Queries and keys turned to the drawn positions."""
        of_keys = self._places(k_positions, "rotate")
        of_queries = of_keys if q_positions is k_positions else self._places(q_positions, "rotate")
        return self.position.rotate(q, k, of_queries, of_keys)

    def bias(
        self,
        q_positions: Num[Tensor, "... queries"],
        k_positions: Num[Tensor, "... keys"],
        heads: int,
        sums: tuple[Tensor, Tensor] | None = None,
    ) -> Bias | None:
        """The bias between drawn positions."""
        of_keys = self._places(k_positions, "bias")  # before those of queries, since they reach as far or farther
        return self.position.bias(self._places(q_positions, "bias"), of_keys, heads, sums)

    def steps(self, x: Float[Tensor, "batch length dim"], heads: int) -> Float[Tensor, "batch length heads"]:
        """Those of the encoding."""
        return self.position.steps(x, heads)

    def pattern(self) -> Pattern | None:
        """That of the encoding, by the true places."""
        return self.position.pattern()

    def _places(self, positions: Tensor, hook: str) -> Tensor:
        return self.draw.places(positions) if self.position.has(hook) else positions
