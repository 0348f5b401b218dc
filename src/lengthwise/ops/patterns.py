"""Patterns: which keys a query may see, as small values that combine with `&` and `|`.

With query position i and key position j in their document, and distance δ = i − j:

    full()               every key                   window(n)             0 ≤ δ < n
    causal()             δ ≥ 0                       window(left, right)   −right ≤ δ ≤ left
    first(n)             j < n                       documents()           keys of the query's own document

A pattern is kept in one normal form, a union of terms each of which is an intersection of the above. An operation
executes the terms without building the matrix; `Pattern.mask` is the dense definition that it must equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lengthwise.errors import InputError


@dataclass(frozen=True)
class Term:
    """Keys with −right ≤ i − j ≤ left and j < first, of the query's document if `documents`. None is no limit."""

    left: int | None = None
    right: int | None = None
    first: int | None = None
    documents: bool = False

    def __and__(self, other: Term) -> Term:
        """Keys in both."""
        return Term(
            _tighter(self.left, other.left),
            _tighter(self.right, other.right),
            _tighter(self.first, other.first),
            self.documents or other.documents,
        )

    def within(self, other: Term) -> bool:
        """Whether every key of this term is one of the other's."""
        return self & other == self

    def __repr__(self) -> str:
        parts = []
        if self.left is None and self.right == 0:
            parts.append("causal()")
        elif self.left is not None and self.right == 0:
            parts.append(f"window({self.left + 1})")
        elif self.left is not None or self.right is not None:
            parts.append(f"window({self.left}, {self.right})")
        if self.first is not None:
            parts.append(f"first({self.first})")
        if self.documents:
            parts.append("documents()")
        return " & ".join(parts) or "full()"


@dataclass(frozen=True)
class Pattern:
    """A union of terms, none of which lies within another. Two patterns with the same terms are equal."""

    terms: tuple[Term, ...]

    def __and__(self, other: Pattern) -> Pattern:
        """Keys that both patterns show."""
        return _union(a & b for a in self.terms for b in other.terms)

    def __or__(self, other: Pattern) -> Pattern:
        """Keys that either pattern shows, each of them once."""
        return _union((*self.terms, *other.terms))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.terms))

    @property
    def causal(self) -> bool:
        """Whether no query sees a later key."""
        return all(term.right == 0 for term in self.terms)

    @property
    def by_documents(self) -> bool:
        """Whether document numbers are needed to tell what a query sees."""
        return any(term.documents for term in self.terms)

    @property
    def band(self) -> tuple[int | None, int | None, int] | None:
        """(left, right, first) if the pattern is one band and, for a causal or unlimited range beside it, the first
        keys; None where it is anything else. Documents aside."""
        bands = [term for term in self.terms if term.first is None]
        sinks = [term for term in self.terms if term.first is not None]
        if len(bands) != 1 or len(sinks) > 1:
            return None
        band = bands[0]
        if not sinks:
            return band.left, band.right, 0
        sink = sinks[0]
        if band.left is None or sink.left is not None or sink.documents != band.documents:
            return None
        if sink.right not in (None, band.right) or sink.first is None:
            return None
        return band.left, band.right, sink.first

    def mask(
        self,
        q_index: Int[Tensor, "*#rows queries"],
        k_index: Int[Tensor, "*#rows keys"],
        q_documents: Int[Tensor, "*#rows queries"] | None = None,
        k_documents: Int[Tensor, "*#rows keys"] | None = None,
    ) -> Bool[Tensor, "*_ queries keys"]:
        """True where a query sees a key: the definition. Indices are places in a document, or in a row that is one.

        With document numbers, keys of other documents are never seen.
        """
        if (q_documents is None) != (k_documents is None):
            raise InputError("give the documents of both queries and keys, or of neither")
        if self.by_documents and q_documents is None:
            raise InputError(f"pattern {self} needs the document numbers of queries and keys")
        distance = q_index[..., :, None] - k_index[..., None, :]
        seen = torch.zeros_like(distance, dtype=torch.bool)
        for term in self.terms:
            part = torch.ones_like(seen)
            if term.left is not None:
                part &= distance <= term.left
            if term.right is not None:
                part &= distance >= -term.right
            if term.first is not None:
                part &= (k_index < term.first)[..., None, :]
            seen |= part
        if q_documents is not None and k_documents is not None:
            seen = seen & (q_documents[..., :, None] == k_documents[..., None, :])
        return seen


def full() -> Pattern:
    """Every key."""
    return Pattern((Term(),))


def causal() -> Pattern:
    """The query's own place and all before it."""
    return Pattern((Term(right=0),))


def window(*sides: int | None) -> Pattern:
    """`window(n)`: the query's own place and the n − 1 before it. `window(left, right)`: so many places to each side,
    None for no limit.

    Raises InputError for a window of less than one place.
    """
    if len(sides) == 1:
        size = sides[0]
        if size is None or size < 1:
            raise InputError(f"window must be at least 1, got {size}")
        return Pattern((Term(left=size - 1, right=0),))
    if len(sides) != 2:
        raise InputError(f"window takes its size, or its left and right side, got {len(sides)} values")
    for name, value in zip(("left", "right"), sides, strict=True):
        if value is not None and value < 0:
            raise InputError(f"the {name} side of a window must be at least 0, got {value}")
    return Pattern((Term(left=sides[0], right=sides[1]),))


def first(size: int) -> Pattern:
    """The first keys of the document, wherever the query is. Raises InputError for less than one."""
    if size < 1:
        raise InputError(f"first must be at least 1, got {size}")
    return Pattern((Term(first=size),))


def documents() -> Pattern:
    """Keys of the query's own document."""
    return Pattern((Term(documents=True),))


PATTERNS: dict[str, Callable[..., Pattern]] = {
    "full": full,
    "causal": causal,
    "window": window,
    "first": first,
    "documents": documents,
}
"""The patterns by the names that expressions use."""


@dataclass(frozen=True)
class Visibility:
    """A pattern laid over the queries and keys of one call.

    query_index, key_index: their places; query_documents, key_documents: their documents, None where a row is one.
    The first dimension is the batch, or 1 where all rows are alike.
    """

    pattern: Pattern
    query_index: Int[Tensor, "#batch queries"]
    key_index: Int[Tensor, "#batch keys"]
    query_documents: Int[Tensor, "#batch queries"] | None = None
    key_documents: Int[Tensor, "#batch keys"] | None = None

    def mask(self, rows: slice = slice(None), columns: slice | Tensor = slice(None)) -> Bool[Tensor, "_ rows columns"]:
        """Whether each query of `rows` sees each key of `columns`, a slice or indices."""
        return self.pattern.mask(
            self.query_index[:, rows],
            self.key_index[:, columns],
            None if self.query_documents is None else self.query_documents[:, rows],
            None if self.key_documents is None else self.key_documents[:, columns],
        )

    def tiles(self, height: int, width: int) -> list[list[bool | None]]:
        """For every tile of `height` queries and `width` keys: False where nothing is seen, True where everything is,
        None where a mask has to tell. Decided from the extremes of places and documents in the tile."""
        q_low, q_high = _extremes(self.query_index, height)
        k_low, k_high = _extremes(self.key_index, width)
        nearest = q_low[:, :, None] - k_high[:, None, :]
        farthest = q_high[:, :, None] - k_low[:, None, :]
        some, every = torch.zeros_like(nearest, dtype=torch.bool), torch.zeros_like(nearest, dtype=torch.bool)
        for term in self.pattern.terms:
            possible, certain = torch.ones_like(some), torch.ones_like(some)
            if term.left is not None:
                possible, certain = possible & (nearest <= term.left), certain & (farthest <= term.left)
            if term.right is not None:
                possible, certain = possible & (farthest >= -term.right), certain & (nearest >= -term.right)
            if term.first is not None:
                possible = possible & (k_low < term.first)[:, None, :]
                certain = certain & (k_high < term.first)[:, None, :]
            some, every = some | possible, every | certain
        if self.query_documents is not None and self.key_documents is not None:
            (q_low, q_high), (k_low, k_high) = (
                _extremes(self.query_documents, height),
                _extremes(self.key_documents, width),
            )
            some = some & (q_low[:, :, None] <= k_high[:, None, :]) & (q_high[:, :, None] >= k_low[:, None, :])
            alike = (q_low == q_high)[:, :, None] & (k_low == k_high)[:, None, :]
            every = every & alike & (q_low[:, :, None] == k_low[:, None, :])
        some, every = some.any(0), every.all(0)
        return [
            [True if e else (None if s else False) for s, e in zip(*pair, strict=True)]
            for pair in zip(some.tolist(), every.tolist(), strict=True)
        ]


def _tighter(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _union(terms: Iterable[Term]) -> Pattern:
    """The terms that lie within no other, in a fixed order."""
    kept: list[Term] = []
    for term in terms:
        if not any(term.within(other) for other in kept):
            kept = [other for other in kept if not other.within(term)] + [term]
    return Pattern(tuple(sorted(kept, key=_order)))


def _order(term: Term) -> tuple[float, ...]:
    limits = (term.right, term.left, term.first, int(term.documents))
    return tuple(float("inf") if limit is None else float(limit) for limit in limits)


def _extremes(values: Int[Tensor, "batch length"], size: int) -> tuple[Tensor, Tensor]:
    """The least and greatest value in each run of `size`, [batch, tiles]."""
    short = -values.shape[1] % size
    if short:
        values = torch.cat([values, values[:, -1:].expand(-1, short)], dim=1)
    blocks = values.unflatten(1, (-1, size))
    return blocks.amin(2), blocks.amax(2)


def aligned(
    pattern: Pattern,
    queries: int,
    keys: int,
    query_documents: Int[Tensor, "#batch queries"] | None = None,
    key_documents: Int[Tensor, "#batch keys"] | None = None,
    positions: Int[Tensor, "#batch keys"] | None = None,
    device: torch.device | None = None,
) -> Visibility:
    """The pattern over queries that are the last of the keys: query i has the place of key i + keys − queries.

    positions: places of the keys in their documents. Without them the keys follow each other, and where the pattern
    has `first`, a document begins where its number changes.
    """
    if (query_documents is None) != (key_documents is None):
        raise InputError("give the documents of both queries and keys, or of neither")
    row = torch.arange(keys, device=device)[None]
    if positions is not None:
        key_index = positions
    elif key_documents is not None and any(term.first is not None for term in pattern.terms):
        key_index = row - run_starts(key_documents)
    else:
        key_index = row
    if keys >= queries:
        query_index = key_index[:, keys - queries :]
    elif positions is None and key_documents is None:
        query_index = torch.arange(keys - queries, keys, device=device)[None]
    else:
        raise InputError(f"with documents or positions there must be as many keys as queries, got {keys} < {queries}")
    return Visibility(pattern, query_index, key_index, query_documents, key_documents)


def run_starts(numbers: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """For every place, the index at which its run of equal numbers began."""
    row = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    changed = torch.ones_like(numbers, dtype=torch.bool)
    changed[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return torch.where(changed, row, 0).cummax(1).values


def without_documents(pattern: Pattern) -> Pattern:
    """The pattern for a row that is one document."""
    return _union(dataclasses.replace(term, documents=False) for term in pattern.terms)
