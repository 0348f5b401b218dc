"""How the pairs that a pattern shows are cut into tiles: which are visited, and which of those need a mask.

A pattern is a union of terms. Terms that are dense where queries and keys are taken in another order, or where some of
them are left out, get a frame of their own:

    strided(l)                        queries and keys in order of i mod l: one dense square for each remainder
    first, fixed, keys_at             the chosen keys alone
    queries_at                        the chosen queries alone

All other terms share the frame of the sequence itself. In each frame a tile of keys is skipped where nothing is seen of
it, taken without a mask where everything is, and with one elsewhere. What an earlier frame has shown isn't seen again.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.ops.conditions import OfKeys, Queries, Stride
from lengthwise.ops.pattern import NOTHING, Pattern, Term, union
from lengthwise.ops.visibility import Visibility, aligned

SIDES = {256: 0.9, 128: 0.6, 64: 0.5}
"""The sides that tiles can have, and about which share of its rate on long rows the processor's kernel has there."""

FINEST = 2**22
"""The most tiles that are looked at to choose a side."""

WRITTEN = 2**22
"""The most numbers of a mask that is written out at once."""


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tiles of queries that each visit `count` neighbouring tiles of keys.

    row, rows: the first tile of queries, and how many. column: the first tile of keys that the first of them visits;
    the next visits from `shift` further on, 0 or 1. masked: whether a mask has to tell what is seen. begins: whether
    these queries haven't seen anything of the frame before.
    """

    row: int
    rows: int
    column: int
    count: int
    shift: int
    masked: bool
    begins: bool

    @property
    def tiles(self) -> int:
        """How many tiles are visited."""
        return self.rows * self.count

    def parts(self, size: int) -> Iterator[Stretch]:
        """The stretch in parts that together have its rows, each of at most `size` of them."""
        for at in range(0, self.rows, size):
            yield replace(self, row=self.row + at, rows=min(size, self.rows - at), column=self.column + at * self.shift)


@dataclass(frozen=True)
class Frame:
    """Chosen queries and keys in an order in which what is seen is dense. None chooses all as they are.

    visibility: what is seen, in that order. height, width: of a tile. stretches: the tiles that are visited.
    shared: by its number, the mask of a stretch that is the same for all its tiles of queries.
    """

    visibility: Visibility
    queries: Int[Tensor, " queries"] | None
    keys: Int[Tensor, " keys"] | None
    height: int
    width: int
    stretches: tuple[Stretch, ...]
    shared: dict[int, Tensor] = field(default_factory=dict)

    @property
    def tiles(self) -> int:
        """How many tiles are visited."""
        return sum(stretch.tiles for stretch in self.stretches)

    def masked(self) -> Iterator[tuple[Stretch, Bool[Tensor, "_ n rows columns"] | None]]:
        """The stretches, in parts whose masks aren't large, and what is seen of each, [batch or 1, n or 1, rows,
        columns] with a mask for each of n tiles of queries where they shift, and one for all where they don't or where
        it is shared; None where everything is seen."""
        rows = self.visibility.rows
        for number, stretch in enumerate(self.stretches):
            if not stretch.masked or number in self.shared:
                yield stretch, self.shared.get(number)
                continue
            size = rows * self.height * self.width * stretch.count
            for part in stretch.parts(max(1, WRITTEN // size)):
                yield part, self.mask(part)

    def mask(self, stretch: Stretch) -> Bool[Tensor, "_ n rows columns"]:
        """What is seen of the tiles of a stretch."""
        device = self.visibility.key_index.device
        n, height = (stretch.rows, self.height) if stretch.shift else (1, self.height * stretch.rows)
        tile = torch.arange(n, device=device)[:, None]
        rows = (stretch.row + tile) * self.height + torch.arange(height, device=device)
        columns = (stretch.column + tile) * self.width + torch.arange(stretch.count * self.width, device=device)
        queries, keys = self.visibility.query_index.shape[1], self.visibility.key_index.shape[1]
        seen = self.visibility.seen(*self.visibility.at(rows.clamp_max(queries - 1), columns.clamp_max(keys - 1)))
        return seen & (columns < keys)[:, None]


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
        found.append(_frame(laid, queries, keys))
        counted = counted | pattern
    return tuple(frame for frame in found if frame.stretches)


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


def _frame(laid: Visibility, queries: Tensor | None, keys: Tensor | None) -> Frame:
    """The frame whose tiles have the size that costs least."""
    many, few = laid.query_index.shape[1], laid.key_index.shape[1]
    best: tuple[float, Frame] | None = None
    for side, rate in SIDES.items() if many and few else ():
        height, width = min(side, many), min(side, few)
        if best is not None and (many // height + 1) * (few // width + 1) > FINEST:
            break
        some, every = laid.verdicts(height, width)
        cost = int(some.sum()) * height * width / rate
        if best is None or cost < best[0]:
            best = cost, Frame(laid, queries, keys, height, width, tuple(stretches(some, every, few // width)))
    if best is None:
        return Frame(laid, queries, keys, 1, 1, ())
    frame = best[1]
    for number, stretch in enumerate(frame.stretches):
        if stretch.masked and stretch.shift and stretch.rows > 1:
            size = laid.rows * frame.height * frame.width * stretch.count
            own = frame.mask(replace(stretch, rows=1))
            parts = stretch.parts(max(1, WRITTEN // size))
            if all(bool((frame.mask(part) == own).all()) for part in parts):
                frame.shared[number] = own
    return frame


def stretches(some: Bool[Tensor, "rows columns"], every: Bool[Tensor, "rows columns"], filled: int) -> list[Stretch]:
    """The tiles of which something is seen, as few stretches; without a mask where everything is.

    Columns from `filled` on end beyond the keys and need a mask. Tiles that shift into one of them are a stretch of
    their own, so that those before it can share their mask.
    """
    every = every & (torch.arange(every.shape[1], device=every.device) < filled)
    found: list[Stretch] = []
    latest: list[int] = []  # the stretches that ended with the row before
    for row, (seen, whole) in enumerate(zip(some.tolist(), (some & every).tolist(), strict=True)):
        current = []
        for ordinal, (column, count, masked) in enumerate(_segments(seen, whole)):
            new = Stretch(row, 1, column, count, 1, masked, ordinal == 0)
            number = next((n for n in latest if _goes_on(found[n], new, filled)), None)
            if number is None:
                number = len(found)
                found.append(new)
            else:
                before = found[number]
                latest.remove(number)
                found[number] = replace(before, rows=before.rows + 1, shift=int(column != before.column))
            current.append(number)
        latest = current
    return sorted(found, key=lambda stretch: not stretch.begins)


def _goes_on(before: Stretch, row: Stretch, filled: int) -> bool:
    """Whether a stretch takes in these tiles of the next row."""
    if (before.count, before.masked, before.begins) != (row.count, row.masked, row.begins):
        return False
    last = before.column + (before.rows - 1) * before.shift + before.count
    if (last > filled) != (row.column + row.count > filled):
        return False
    shifts = (0, 1) if before.rows == 1 else (before.shift,)
    return any(row.column == before.column + before.rows * shift for shift in shifts)


def _segments(seen: list[bool], whole: list[bool]) -> list[tuple[int, int, bool]]:
    """The neighbouring tiles of one row that are visited at once, as (column, count, masked): whole ones apart from
    the others where they are many."""
    columns = [column for column, yes in enumerate(seen) if yes]
    apart = sum(whole[column] for column in columns) > 2 * sum(not whole[column] for column in columns)
    found: list[tuple[int, int, bool]] = []
    for column in columns:
        masked = not (apart and whole[column])
        if found and sum(found[-1][:2]) == column and found[-1][2] == masked:
            found[-1] = found[-1][0], found[-1][1] + 1, masked
        else:
            found.append((column, 1, masked))
    return [(c, n, any(not whole[x] for x in range(c, c + n))) for c, n, _ in found]
