"""How the pairs that a pattern shows are cut into tiles: which are visited, and which of those need a mask.

A pattern is a union of terms. Terms that are dense where queries and keys are taken in another order, or where some of
them are left out, get a frame of their own:

    strided(l)                        queries and keys in order of i mod l: one dense square for each remainder
    first, fixed, keys_at             the chosen keys alone
    queries_at                        the chosen queries alone

All other terms share the frame of the sequence itself. In each frame a tile of keys is skipped where nothing is seen of
it, taken without a mask where everything is, and with one elsewhere: there each block of a few queries is taken with
the keys from the first to the last that any of them sees. What an earlier frame has shown isn't seen again.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from lengthwise.errors import InputError
from lengthwise.ops.conditions import OfKeys, Queries, Stride
from lengthwise.ops.pattern import NOTHING, Pattern, Term, union
from lengthwise.ops.visibility import Visibility, aligned

SIDE = 256
"""The most queries and keys of a tile."""

BLOCK = 64
"""The most queries of a block."""

KEPT = 2**20
"""The most numbers of masks that are kept for the next call."""


@dataclass(frozen=True)
class Seen:
    """What is seen of a tile.

    blocks: of each block its first and last query and its first and last key, each after its last. mask: within them,
    True where a query sees a key; None where everything is seen.
    """

    blocks: Int[Tensor, "_ blocks 4"]
    mask: Bool[Tensor, "_ queries keys"] | None = None

    @staticmethod
    def by(mask: Bool[Tensor, "_ queries keys"]) -> Seen:
        """By a mask."""
        queries, keys = mask.shape[1:]
        begins = torch.arange(0, queries, BLOCK, device=mask.device).expand(len(mask), -1)
        any_sees = pad(mask, (0, 0, 0, -queries % BLOCK)).unflatten(1, (-1, BLOCK)).any(2)
        first, last = any_sees.byte().argmax(2), keys - any_sees.flip(2).byte().argmax(2)
        last = last.where(any_sees.any(2), first)
        return Seen(torch.stack([begins, (begins + BLOCK).clamp_max(queries), first, last], 2), mask)

    @property
    def pairs(self) -> float:
        """How many queries times keys its blocks have, in the mean over the rows of the batch."""
        first, end, left, right = self.blocks.unbind(2)
        return int(((end - first) * (right - left)).sum()) / len(self.blocks)


@dataclass(frozen=True)
class Tiles:
    """The tiles of a pattern laid over queries and keys."""

    visibility: Visibility
    height: int
    width: int
    known: dict[tuple[int, int], Seen] = field(default_factory=dict, compare=False, repr=False)
    distinct: dict[int, Seen] = field(default_factory=dict, compare=False, repr=False)

    @functools.cached_property
    def rows(self) -> list[tuple[slice, list[tuple[slice, bool]]]]:
        """Every tile of queries, with the tiles of keys that it sees any of and whether something is hidden there."""
        queries, keys = self.visibility.query_index.shape[1], self.visibility.key_index.shape[1]
        across = range(0, queries, self.height)
        verdicts = self.visibility.tiles(self.height, self.width) if queries and keys else [[] for _ in across]
        columns = [slice(j, min(j + self.width, keys)) for j in range(0, keys, self.width)]
        return [
            (
                slice(i, min(i + self.height, queries)),
                [(c, full is None) for c, full in zip(columns, line, strict=True) if full is not False],
            )
            for i, line in zip(across, verdicts, strict=True)
        ]

    @property
    def area(self) -> int:
        """How many queries times keys a tile has at most."""
        return self.height * self.width

    @property
    def count(self) -> int:
        """How many tiles are visited."""
        return sum(len(tiles) for _, tiles in self.rows)

    @property
    def pairs(self) -> float:
        """How many queries times keys are visited, in the mean over the rows of the batch."""
        return sum(self.seen(rows, *tile).pairs for rows, tiles in self.rows for tile in tiles)

    def seen(self, rows: slice, columns: slice, hides: bool) -> Seen:
        """What is seen of one tile. Masks are kept, equal ones once, as long as they are few."""
        if not hides:
            return everything(rows.stop - rows.start, columns.stop - columns.start)
        place = rows.start, columns.start
        seen = self.known.get(place)
        if seen is None:
            mask = self.visibility.mask(rows, columns)
            number = hash(mask.numpy(force=True).tobytes())
            seen = self.distinct.get(number)
            if seen is None or seen.mask is None or not torch.equal(seen.mask, mask):
                seen = Seen.by(mask)
                if (len(self.distinct) + 1) * mask.numel() > KEPT:
                    return seen
            self.known[place] = self.distinct[number] = seen
        return seen


@functools.cache
def everything(queries: int, keys: int) -> Seen:
    """That everything is seen of a tile."""
    return Seen(torch.tensor([[[0, queries, 0, keys]]]))


def sides(queries: int, keys: int) -> tuple[int, int]:
    """The queries and keys of a tile: of queries so few that each thread has some, if that is a block."""
    share = -(-queries // torch.get_num_threads())
    return max(1, min(SIDE, queries, -(-share // BLOCK) * BLOCK)), max(1, min(SIDE, keys))


@functools.lru_cache(maxsize=64)
def tiles_of(pattern: Pattern, queries: int, keys: int, device: torch.device, height: int, width: int) -> Tiles:
    """The tiles of a row that is one document, whose queries are the last of its keys. They are kept, since all layers
    and steps of training ask for the same."""
    return Tiles(aligned(pattern, queries, keys, device=device), height, width)


@dataclass(frozen=True)
class Frame:
    """Chosen queries and keys in an order in which what is seen is dense. None chooses all as they are.

    tiles: what is seen, in that order.
    """

    tiles: Tiles
    queries: Int[Tensor, " queries"] | None = None
    keys: Int[Tensor, " keys"] | None = None


def frames(visibility: Visibility) -> tuple[Frame, ...]:
    """The frames of a call, with the tiles each visits. Raises InputError where heads have patterns of their own."""
    if len(visibility.pattern.heads) > 1:
        raise InputError(f"each group of heads is a call of its own, got the pattern {visibility.pattern}")
    alike = visibility.query_index.shape[0] == visibility.key_index.shape[0] == 1
    alike = alike and visibility.query_documents is None
    grouped: dict[tuple[object, ...], list[Term]] = defaultdict(list)
    for term in visibility.pattern.terms:
        apart = tuple(c for c in term.conditions if isinstance(c, OfKeys | Queries | Stride)) if alike else ()
        grouped[apart].append(term)
    found, counted = [], NOTHING
    for kind in sorted(grouped, key=len):
        pattern = union(grouped[kind])
        queries, keys = _chosen(visibility, pattern.terms[0]) if kind else (None, None)
        laid = replace(visibility, pattern=pattern, counted=counted).chosen(queries, keys)
        size = sides(laid.query_index.shape[1], laid.key_index.shape[1])
        found.append(Frame(Tiles(laid, *size), queries, keys))
        counted = counted | pattern
    return tuple(frame for frame in found if frame.tiles.count)


@functools.lru_cache(maxsize=64)
def frames_of(pattern: Pattern, queries: int, keys: int, device: torch.device) -> tuple[Frame, ...]:
    """The frames of a row that is one document, whose queries are the last of its keys. They are kept, since all layers
    and steps of training ask for the same."""
    return frames(aligned(pattern, queries, keys, device=device))


def _chosen(visibility: Visibility, term: Term) -> tuple[Tensor | None, Tensor | None]:
    """The queries and keys that a term can show, in the order in which they are dense."""
    i, j = visibility.query_index[0], visibility.key_index[0]
    asks, shown = torch.ones_like(i, dtype=torch.bool), torch.ones_like(j, dtype=torch.bool)
    step = 1
    for condition in term.conditions:
        if isinstance(condition, Queries):
            asks = asks & condition.holds(i, i)
        elif isinstance(condition, OfKeys):
            shown = shown & condition.chosen(j)
        elif isinstance(condition, Stride):
            step = condition.step
    if step == 1:
        return (None if asks.all() else asks.nonzero()[:, 0]), (None if shown.all() else shown.nonzero()[:, 0])
    remainders = (i[asks] % step).unique()
    shown = shown & torch.isin(j % step, remainders)
    queries, keys = asks.nonzero()[:, 0], shown.nonzero()[:, 0]
    return queries[(i[queries] % step).argsort(stable=True)], keys[(j[keys] % step).argsort(stable=True)]
