"""The normal form of patterns: unions of terms, each of which is an intersection of `conditions`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.ops.conditions import Band, Blocks, Condition, First, Fixed, Keys, OfKeys, Queries, Stride

KINDS = (Band, Stride, Blocks, First, Fixed, Keys, Queries)
"""The kinds of conditions, in the order in which a term names them."""


@dataclass(frozen=True)
class Term:
    """Keys of which all the conditions hold, of the query's document if `documents`."""

    conditions: tuple[Condition, ...] = ()
    documents: bool = False

    def __and__(self, other: Term) -> Term:
        """Keys in both."""
        met: list[Condition] = []
        for condition in (*self.conditions, *other.conditions):
            for at, earlier in enumerate(met):
                both = earlier.meet(condition)
                if both is not None:
                    met[at] = both
                    break
            else:
                met.append(condition)
        kept = sorted((c for c in met if not c.always), key=_order)
        return Term(tuple(kept), self.documents or other.documents)

    @property
    def empty(self) -> bool:
        """Whether it shows no key to any query."""
        return any(condition.empty for condition in self.conditions)

    @property
    def band(self) -> Band:
        """The distances at which it shows keys."""
        return next((c for c in self.conditions if isinstance(c, Band)), Band())

    def within(self, other: Term) -> bool:
        """Whether every key of this term is one of the other's."""
        return self & other == self

    def holds(self, i: Tensor, j: Tensor) -> Tensor:
        """Whether a query at place i sees a key at place j, documents aside. The places broadcast to each other."""
        seen = (i == i) & (j == j)
        for condition in self.conditions:
            seen = seen & condition.holds(i, j)
        return seen

    def begins(self, place: int) -> int | None:
        """The first key that any query from `place` on can see, None without a limit."""
        limits = [limit for c in self.conditions if (limit := c.begins(place)) is not None]
        return max(limits, default=None)

    @property
    def chooses(self) -> bool:
        """Whether it matters which key it is, and not only where from the query."""
        return any(isinstance(condition, OfKeys) for condition in self.conditions)

    def lasting(self, j: Tensor) -> Tensor:
        """Which keys queries as late as you like can see, where there is no limit."""
        kept = torch.ones_like(j, dtype=torch.bool)
        for condition in self.conditions:
            if isinstance(condition, OfKeys):
                kept = kept & condition.chosen(j)
        return kept

    def __repr__(self) -> str:
        parts = [repr(condition) for condition in self.conditions] + ["documents()"] * self.documents
        return " & ".join(parts) or "full()"


@dataclass(frozen=True)
class Pattern:
    """A union of terms. A term that lies within another is left out, where their conditions are of the same kinds; two
    patterns with the same terms are equal."""

    terms: tuple[Term, ...]

    def __and__(self, other: Pattern) -> Pattern:
        """Keys that both patterns show."""
        if isinstance(other, HeadPatterns):
            return other & self
        return union(a & b for a in self.terms for b in other.terms)

    def __or__(self, other: Pattern) -> Pattern:
        """Keys that either pattern shows, each of them once."""
        return other | self if isinstance(other, HeadPatterns) else union((*self.terms, *other.terms))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.terms)) or "keys_at()"

    @property
    def heads(self) -> tuple[Pattern, ...]:
        """The pattern of each group of heads: itself, where all have the same."""
        return (self,)

    @property
    def causal(self) -> bool:
        """Whether no query sees a later key."""
        return all(term.band.right == 0 for term in self.terms)

    @property
    def by_documents(self) -> bool:
        """Whether document numbers are needed to tell what a query sees."""
        return any(term.documents for term in self.terms)

    @property
    def by_place(self) -> bool:
        """Whether it matters where in its document a key is, and not only how far from the query."""
        return any(not isinstance(c, Band | Stride) for term in self.terms for c in term.conditions)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_band", self._single_band())  # here, since every decoded token asks for it

    @property
    def band(self) -> tuple[int | None, int | None, int] | None:
        """(left, right, first) if the pattern is one band and, for a causal or unlimited range beside it, the first
        keys; None where it is anything else. Documents aside."""
        return self._band  # type: ignore[attr-defined,no-any-return]

    def _single_band(self) -> tuple[int | None, int | None, int] | None:
        if any(not isinstance(c, Band | First) for term in self.terms for c in term.conditions):
            return None
        sizes = [next((c.size for c in term.conditions if isinstance(c, First)), None) for term in self.terms]
        bands = [term for term, size in zip(self.terms, sizes, strict=True) if size is None]
        sinks = [(term, size) for term, size in zip(self.terms, sizes, strict=True) if size is not None]
        if len(bands) != 1 or len(sinks) > 1:
            return None
        band = bands[0].band
        if not sinks:
            return band.left, band.right, 0
        sink, size = sinks[0]
        if band.left is None or sink.band.left is not None or sink.documents != bands[0].documents:
            return None
        return (band.left, band.right, size) if sink.band.right in (None, band.right) else None

    @property
    def limited(self) -> bool:
        """Whether a causal pattern shows only so many latest keys, however long the document."""
        return all(term.begins(0) is not None for term in self.terms)

    @property
    def lasts(self) -> bool:
        """Whether a causal pattern shows keys of any place to queries as late as you like."""
        return any(term.begins(0) is None and not term.chooses for term in self.terms)

    @property
    def bounded(self) -> bool:
        """Whether the keys that later queries can see are never more than so many."""
        kept = [term for term in self.terms if term.begins(0) is None]
        return all(any(isinstance(c, First | Keys) for c in term.conditions) for term in kept)

    def near(self, place: int) -> int:
        """The first key that queries from `place` on can see through terms that have a limit; `place` without any."""
        limits = [limit for term in self.terms if (limit := term.begins(place)) is not None]
        return min([place, *limits])

    def lasting(self, j: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Which keys queries as late as you like can see, through terms without a limit."""
        kept = torch.zeros_like(j, dtype=torch.bool)
        for term in self.terms:
            if term.begins(0) is None:
                kept = kept | term.lasting(j)
        return kept

    def kept(self, length: int) -> tuple[int, int]:
        """How many of so many keys later queries can see: the latest ones, and those among the earlier ones."""
        near = self.near(length)
        return length - near, 0 if self.limited else int(self.lasting(torch.arange(near)).sum())

    @property
    def period(self) -> int:
        """After how many places a pattern of blocks shows the same again."""
        return math.lcm(*(c.size for term in self.terms for c in term.conditions if isinstance(c, Blocks)))

    def receptive_field(self, layers: int = 1) -> int | None:
        """How many places an output of so many layers can depend on at most; None where there is no limit."""
        if not self.terms:
            return 1
        sides, fields = [_sides(term) for term in self.terms], []
        if not any(side is None for pair in sides for side in pair):
            left, right = (max(pair[at] or 0 for pair in sides) for at in (0, 1))
            fields.append(layers * (left + right) + 1)
        shared = {c for term in self.terms for c in term.conditions if isinstance(c, Blocks)}
        if len(shared) == 1 and all(shared <= set(term.conditions) for term in self.terms):
            block = next(iter(shared))
            fields.append((layers * (block.previous + (0 if self.causal else block.following)) + 1) * block.size)
        return min(fields, default=None)

    def entries(self, length: int) -> float:
        """How many pairs of a query and a key that it sees there are in a document; for groups of heads, the mean."""
        place, size, count = torch.arange(length), 256, 0
        alone = without_documents(self)
        some, _ = alone.verdicts(place[None], place[None], size, size) if length else (torch.zeros(1, 0, 0), None)
        for row, column in some[0].nonzero().tolist():
            tile = slice(row * size, (row + 1) * size), slice(column * size, (column + 1) * size)
            count += int(alone.mask(place[tile[0]], place[tile[1]]).sum())
        return count

    def picture(self, length: int = 32) -> str:
        """The mask of a document as text, a line for each query: █ where it sees the key. Groups of heads stand side by
        side."""
        place = torch.arange(length)
        masks = [without_documents(group).mask(place, place).tolist() for group in self.heads]
        lines = zip(*masks, strict=True)
        return "\n".join("  ".join("".join("█" if yes else "·" for yes in row) for row in line) for line in lines)

    def verdicts(
        self, i: Int[Tensor, "rows queries"], j: Int[Tensor, "rows keys"], height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """For every tile of `height` queries and `width` keys, whether it may show something and whether it is certain
        to show all, [rows, query tiles, key tiles]. Documents aside."""
        shape = (max(i.shape[0], j.shape[0]), -(-i.shape[1] // height), -(-j.shape[1] // width))
        some = torch.zeros(shape, dtype=torch.bool, device=i.device)
        every = torch.zeros_like(some)
        for term in self.terms:
            possible, certain = torch.ones_like(some), torch.ones_like(some)
            for condition in term.conditions:
                can, must = condition.tiles(i, j, height, width)
                possible, certain = possible & can, certain & must
            some, every = some | possible, every | certain
        return some, every

    def holds(self, i: Tensor, j: Tensor) -> Tensor:
        """Whether a query at place i sees a key at place j, documents aside. The places broadcast to each other."""
        seen = (i != i) & (j != j)
        for term in self.terms:
            seen = seen | term.holds(i, j)
        return seen

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
        i, j = q_index[..., :, None], k_index[..., None, :]
        seen = self.holds(i, j)
        if q_documents is not None and k_documents is not None:
            seen = seen & (q_documents[..., :, None] == k_documents[..., None, :])
        return seen


NOTHING = Pattern(())
"""The pattern that shows no key."""


@dataclass(frozen=True, repr=False)
class HeadPatterns(Pattern):
    """Patterns of groups of heads, which share the heads evenly and in order. `terms` are those of all of them."""

    groups: tuple[Pattern, ...] = ()

    def __and__(self, other: Pattern) -> Pattern:
        """Group by group."""
        return per_head(*(a & b for a, b in _pairs(self, other)))

    def __or__(self, other: Pattern) -> Pattern:
        """Group by group."""
        return per_head(*(a | b for a, b in _pairs(self, other)))

    def __repr__(self) -> str:
        return f"per_head({', '.join(map(repr, self.groups))})"

    @property
    def heads(self) -> tuple[Pattern, ...]:
        """The pattern of each group of heads."""
        return self.groups

    @property
    def band(self) -> tuple[int | None, int | None, int] | None:
        """None: no single band tells what all heads see."""
        return None

    def entries(self, length: int) -> float:
        """The mean over the groups."""
        return sum(group.entries(length) for group in self.groups) / len(self.groups)

    def mask(self, *indices: Tensor | None) -> Tensor:  # type: ignore[override]  # noqa: ARG002
        """Groups have masks of their own."""
        raise InputError(f"heads see different keys: take the mask of each of the patterns in {self}.heads")


def _pairs(a: Pattern, b: Pattern) -> list[tuple[Pattern, Pattern]]:
    """The patterns of each group of heads of either, in as many groups as both divide."""
    count = math.lcm(len(a.heads), len(b.heads))
    return [(a.heads[g * len(a.heads) // count], b.heads[g * len(b.heads) // count]) for g in range(count)]


def per_head(*patterns: Pattern) -> Pattern:
    """Heads in as many groups of equal size as there are patterns, in order, each seeing by its own.

    Raises InputError where there is none, and where one is itself a pattern of groups.
    """
    if not patterns:
        raise InputError("per_head takes a pattern for each group of heads, got none")
    nested = [pattern for pattern in patterns if isinstance(pattern, HeadPatterns)]
    if nested:
        raise InputError(f"per_head takes patterns that all heads share, got {nested[0]}")
    if all(pattern == patterns[0] for pattern in patterns):
        return patterns[0]
    return HeadPatterns(union(term for pattern in patterns for term in pattern.terms).terms, patterns)


def union(terms: Iterable[Term]) -> Pattern:
    """The terms that lie within no other, in a fixed order."""
    kept: list[Term] = []
    for term in terms:
        if not term.empty and not any(term.within(other) for other in kept):
            kept = [other for other in kept if not other.within(term)] + [term]
    return Pattern(tuple(sorted(kept, key=lambda term: (len(term.conditions), repr(term)))))


def without_documents(pattern: Pattern) -> Pattern:
    """The pattern for a row that is one document."""
    return per_head(*(union(Term(term.conditions) for term in group.terms) for group in pattern.heads))


def _order(condition: Condition) -> tuple[int, str]:
    return KINDS.index(type(condition)), repr(condition)  # type: ignore[arg-type]


def _sides(term: Term) -> tuple[int | None, int | None]:
    """How far to the left and to the right of the query a term shows keys, at most."""
    sides = [(c.left, c.right) for c in term.conditions if isinstance(c, Band)]
    for block in (c for c in term.conditions if isinstance(c, Blocks)):
        sides.append(((block.previous + 1) * block.size - 1, (block.following + 1) * block.size - 1))
    left = [side for side, _ in sides if side is not None]
    right = [side for _, side in sides if side is not None]
    return min(left, default=None), min(right, default=None)
