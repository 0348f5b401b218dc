"""A pattern laid over the queries and keys of one call."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.ops.conditions import extremes
from lengthwise.ops.pattern import Pattern


@dataclass(frozen=True)
class Visibility:
    """A pattern laid over the queries and keys of one call.

    query_index, key_index: their places; query_documents, key_documents: their documents, None where a row is one.
    The first dimension is the batch, or 1 where all rows are alike. counted: what it shows is seen no more.
    """

    pattern: Pattern
    query_index: Int[Tensor, "#batch queries"]
    key_index: Int[Tensor, "#batch keys"]
    query_documents: Int[Tensor, "#batch queries"] | None = None
    key_documents: Int[Tensor, "#batch keys"] | None = None
    counted: Pattern | None = None

    @property
    def rows(self) -> int:
        """How many rows it tells apart: 1 where all are alike."""
        given = (self.query_index, self.key_index, self.query_documents, self.key_documents)
        return max(len(x) for x in given if x is not None)

    def mask(
        self, rows: slice | Tensor = slice(None), columns: slice | Tensor = slice(None)
    ) -> Bool[Tensor, "_ rows columns"]:
        """Whether each query of `rows` sees each key of `columns`, slices or indices."""
        return self.seen(*self.at(rows, columns))

    def at(self, rows: slice | Tensor, columns: slice | Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Places and documents of these queries and keys, [batch or 1, *rows] and [batch or 1, *columns]."""
        return (
            self.query_index[:, rows],
            self.key_index[:, columns],
            None if self.query_documents is None else self.query_documents[:, rows],
            None if self.key_documents is None else self.key_documents[:, columns],
        )

    def seen(self, *where: Tensor | None) -> Bool[Tensor, "*_ rows columns"]:
        """Whether queries see keys, all given as `at` gives them."""
        seen = self.pattern.mask(*where)  # type: ignore[arg-type]
        if self.counted is not None and self.counted.terms:
            seen = seen & ~self.counted.mask(*where)  # type: ignore[arg-type]
        return seen

    def chosen(self, queries: Int[Tensor, " rows"] | None, keys: Int[Tensor, " columns"] | None) -> Visibility:
        """The same of some of the queries and keys, in the order of these indices; None for all."""
        q, k, q_documents, k_documents = self.at(
            slice(None) if queries is None else queries, slice(None) if keys is None else keys
        )
        return replace(self, query_index=q, key_index=k, query_documents=q_documents, key_documents=k_documents)

    def verdicts(self, height: int, width: int) -> tuple[Bool[Tensor, "_ _"], Bool[Tensor, "_ _"]]:
        """For every tile of `height` queries and `width` keys, whether something may be seen there in any row, and
        whether everything is certain to be in all. Decided from the extremes of places and documents in the tile."""
        some, every = self.pattern.verdicts(self.query_index, self.key_index, height, width)
        if self.counted is not None and self.counted.terms:
            before = self.counted.verdicts(self.query_index, self.key_index, height, width)
            some, every = some & ~before[1], every & ~before[0]
        if self.query_documents is not None and self.key_documents is not None:
            (q_low, q_high), (k_low, k_high) = (
                extremes(self.query_documents, height),
                extremes(self.key_documents, width),
            )
            some = some & (q_low[:, :, None] <= k_high[:, None, :]) & (q_high[:, :, None] >= k_low[:, None, :])
            alike = (q_low == q_high)[:, :, None] & (k_low == k_high)[:, None, :]
            every = every & alike & (q_low[:, :, None] == k_low[:, None, :])
        return some.any(0), every.all(0)

    def tiles(self, height: int, width: int) -> list[list[bool | None]]:
        """For every tile: False where nothing is seen, True where everything is, None where a mask has to tell."""
        some, every = self.verdicts(height, width)
        return [
            [True if e else (None if s else False) for s, e in zip(*pair, strict=True)]
            for pair in zip(some.tolist(), every.tolist(), strict=True)
        ]


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
    counts places from the beginning of the document, that is where its number changes.
    """
    if (query_documents is None) != (key_documents is None):
        raise InputError("give the documents of both queries and keys, or of neither")
    row = torch.arange(keys, device=device)[None]
    if positions is not None:
        key_index = positions
    elif key_documents is not None and pattern.by_place:
        key_index = row - run_starts(key_documents)
    else:
        key_index = row
    if keys >= queries:
        query_index = key_index[:, keys - queries :]
    elif key_index is row:
        query_index = torch.arange(keys - queries, keys, device=device)[None]
    else:
        raise InputError(f"places of documents need as many keys as queries, got {keys} < {queries}")
    return Visibility(pattern, query_index, key_index, query_documents, key_documents)


def run_starts(numbers: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """For every place, the index at which its run of equal numbers began."""
    row = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    changed = torch.ones_like(numbers, dtype=torch.bool)
    changed[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return torch.where(changed, row, 0).cummax(1).values
