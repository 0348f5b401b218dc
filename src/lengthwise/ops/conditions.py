"""Conditions on the places of a query and a key: what patterns are intersections and unions of.

With query place i and key place j in their document:

    Band(left, right)                    −right ≤ i − j ≤ left
    Stride(step)                         i ≡ j (mod step)
    Blocks(size, previous, following)    −following ≤ ⌊i / size⌋ − ⌊j / size⌋ ≤ previous
    First(size)                          j < size
    Fixed(length, low, high)             low ≤ j mod length < high
    Keys(places), Queries(places)        j, or i, is one of the places

Each says of single places whether it holds, of tiles of places whether it can hold and whether it must, and which keys
a cache has to keep for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Places = Int[Tensor, "..."]
Truth = Bool[Tensor, "..."]


def extremes(values: Int[Tensor, "rows length"], size: int) -> tuple[Tensor, Tensor]:
    """The least and greatest value in each run of `size`, [rows, tiles]."""
    short = -values.shape[1] % size
    if short:
        values = torch.cat([values, values[:, -1:].expand(-1, short)], dim=1)
    blocks = values.unflatten(1, (-1, size))
    return blocks.amin(2), blocks.amax(2)


def across(low: Tensor, high: Tensor, k_low: Tensor, k_high: Tensor) -> tuple[Tensor, Tensor]:
    """The least and greatest difference of a value of a query tile and one of a key tile, [rows, tiles, tiles]."""
    return low[:, :, None] - k_high[:, None, :], high[:, :, None] - k_low[:, None, :]


@dataclass(frozen=True)
class Condition:
    """What holds, or doesn't, of a query and a key by their places."""

    @property
    def empty(self) -> bool:
        """Whether it holds of no pair at all."""
        return False

    @property
    def always(self) -> bool:
        """Whether it holds of every pair."""
        return False

    def holds(self, i: Places, j: Places) -> Truth:
        """Whether it holds, of places that broadcast to each other."""
        raise NotImplementedError

    def tiles(self, i: Tensor, j: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """For every tile of `height` queries and `width` keys, whether it can hold of some pair and whether it is
        certain to hold of all, [rows, query tiles, key tiles]. i: [rows, queries]. j: [rows, keys]."""
        raise NotImplementedError

    def meet(self, other: Condition) -> Condition | None:
        """Both as one condition; None where they are two."""
        return self if self == other else None

    def begins(self, place: int) -> int | None:  # noqa: ARG002
        """The first key that any query from `place` on can see; None without a limit."""
        return None


@dataclass(frozen=True)
class Band(Condition):
    """−right ≤ i − j ≤ left. None is no limit."""

    left: int | None = None
    right: int | None = None

    @property
    def always(self) -> bool:
        """Whether it has no limit."""
        return self.left is None and self.right is None

    def holds(self, i: Places, j: Places) -> Truth:
        """By the distance."""
        distance = i - j
        if self.left is None:
            return distance >= -self.right if self.right is not None else distance == distance
        near = distance <= self.left
        return near if self.right is None else near & (distance >= -self.right)

    def tiles(self, i: Tensor, j: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """By the nearest and the farthest pair."""
        nearest, farthest = across(*extremes(i, height), *extremes(j, width))
        possible, certain = torch.ones_like(nearest, dtype=torch.bool), torch.ones_like(nearest, dtype=torch.bool)
        if self.left is not None:
            possible, certain = possible & (nearest <= self.left), certain & (farthest <= self.left)
        if self.right is not None:
            possible, certain = possible & (farthest >= -self.right), certain & (nearest >= -self.right)
        return possible, certain

    def meet(self, other: Condition) -> Condition | None:
        """The narrower side of each."""
        if not isinstance(other, Band):
            return None
        return Band(_tighter(self.left, other.left), _tighter(self.right, other.right))

    def begins(self, place: int) -> int | None:
        """`left` before it."""
        return None if self.left is None else max(place - self.left, 0)

    def __repr__(self) -> str:
        if self.left is None and self.right == 0:
            return "causal()"
        if self.left is not None and self.right == 0:
            return f"window({self.left + 1})"
        return f"window({self.left}, {self.right})"


@dataclass(frozen=True)
class Stride(Condition):
    """i ≡ j (mod step)."""

    step: int

    @property
    def always(self) -> bool:
        """Whether it leaves nothing out."""
        return self.step == 1

    def holds(self, i: Places, j: Places) -> Truth:
        """By the distance."""
        return (i - j) % self.step == 0

    def tiles(self, i: Tensor, j: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """By the remainders in each tile, and by whether a multiple lies between the nearest and the farthest pair."""
        (q_low, q_high), (k_low, k_high) = extremes(i % self.step, height), extremes(j % self.step, width)
        nearest, farthest = across(q_low, q_high, k_low, k_high)
        alike = (nearest == 0) & (farthest == 0)
        first, last = across(*extremes(i, height), *extremes(j, width))
        between = last.div(self.step, rounding_mode="floor") * self.step >= first
        return (nearest <= 0) & (farthest >= 0) & between, alike

    def meet(self, other: Condition) -> Condition | None:
        """The least common multiple."""
        return Stride(math.lcm(self.step, other.step)) if isinstance(other, Stride) else None

    def __repr__(self) -> str:
        return f"strided({self.step})"


@dataclass(frozen=True)
class Blocks(Condition):
    """−following ≤ ⌊i / size⌋ − ⌊j / size⌋ ≤ previous."""

    size: int
    previous: int = 0
    following: int = 0

    def holds(self, i: Places, j: Places) -> Truth:
        """By the numbers of the blocks."""
        apart = i.div(self.size, rounding_mode="floor") - j.div(self.size, rounding_mode="floor")
        return (apart <= self.previous) & (apart >= -self.following)

    def tiles(self, i: Tensor, j: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """By the first and last block of each tile."""
        own, theirs = (x.div(self.size, rounding_mode="floor") for x in (i, j))
        nearest, farthest = across(*extremes(own, height), *extremes(theirs, width))
        possible = (nearest <= self.previous) & (farthest >= -self.following)
        return possible, (farthest <= self.previous) & (nearest >= -self.following)

    def meet(self, other: Condition) -> Condition | None:
        """The fewer blocks to each side, where blocks are equal."""
        if not isinstance(other, Blocks) or other.size != self.size:
            return None
        return Blocks(self.size, min(self.previous, other.previous), min(self.following, other.following))

    def begins(self, place: int) -> int | None:
        """The first place of the earliest block."""
        return max(place // self.size - self.previous, 0) * self.size

    def __repr__(self) -> str:
        return f"blocks({self.size}, {self.previous}, {self.following})"


@dataclass(frozen=True)
class OfKeys(Condition):
    """A condition on the key alone."""

    def chosen(self, j: Places) -> Truth:
        """Whether it holds of keys, whoever asks."""
        raise NotImplementedError

    def holds(self, i: Places, j: Places) -> Truth:
        """By the key."""
        return self.chosen(j) & (i == i)

    def tiles(self, i: Tensor, j: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """By the keys of each tile."""
        low, high = extremes(self.chosen(j).int(), width)
        rows = -(-i.shape[1] // height)
        return tuple((x > 0)[:, None].expand(-1, rows, -1) for x in (high, low))  # type: ignore[return-value]


@dataclass(frozen=True)
class First(OfKeys):
    """j < size."""

    size: int

    def chosen(self, j: Places) -> Truth:
        """The first ones."""
        return j < self.size

    def meet(self, other: Condition) -> Condition | None:
        """The fewer."""
        return First(min(self.size, other.size)) if isinstance(other, First) else None

    def __repr__(self) -> str:
        return f"first({self.size})"


@dataclass(frozen=True)
class Fixed(OfKeys):
    """low ≤ j mod length < high."""

    length: int
    low: int
    high: int

    @property
    def empty(self) -> bool:
        """Whether no place is left."""
        return self.low >= self.high

    @property
    def always(self) -> bool:
        """Whether it is the whole block."""
        return self.low <= 0 and self.high >= self.length

    def chosen(self, j: Places) -> Truth:
        """By the place in the block."""
        place = j % self.length
        return (place >= self.low) & (place < self.high)

    def meet(self, other: Condition) -> Condition | None:
        """The places of both, where blocks are equal."""
        if not isinstance(other, Fixed) or other.length != self.length:
            return None
        return Fixed(self.length, max(self.low, other.low), min(self.high, other.high))

    def __repr__(self) -> str:
        return f"fixed({self.length}, {self.high - self.low}, {self.length - self.high})"


@dataclass(frozen=True)
class Keys(OfKeys):
    """j is one of the places."""

    places: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """Whether no place is left."""
        return not self.places

    def chosen(self, j: Places) -> Truth:
        """Those at the places."""
        return _among(j, self.places)

    def meet(self, other: Condition) -> Condition | None:
        """The places of both."""
        return Keys(tuple(p for p in self.places if p in other.places)) if isinstance(other, Keys) else None

    def __repr__(self) -> str:
        return f"keys_at({', '.join(map(str, self.places))})"


@dataclass(frozen=True)
class Queries(Condition):
    """i is one of the places."""

    places: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """Whether no place is left."""
        return not self.places

    def holds(self, i: Places, j: Places) -> Truth:
        """By the query."""
        return _among(i, self.places) & (j == j)

    def tiles(self, i: Tensor, j: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """By the queries of each tile."""
        low, high = extremes(_among(i, self.places).int(), height)
        columns = -(-j.shape[1] // width)
        return tuple((x > 0)[:, :, None].expand(-1, -1, columns) for x in (high, low))  # type: ignore[return-value]

    def meet(self, other: Condition) -> Condition | None:
        """The places of both."""
        return Queries(tuple(p for p in self.places if p in other.places)) if isinstance(other, Queries) else None

    def __repr__(self) -> str:
        return f"queries_at({', '.join(map(str, self.places))})"


def _among(values: Places, places: tuple[int, ...]) -> Truth:
    found = torch.zeros_like(values, dtype=torch.bool)
    for place in places:
        found = found | (values == place)
    return found


def _tighter(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)
