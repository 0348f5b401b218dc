"""Patterns: which keys a query may see, as small values that combine with `&` and `|`.

With query place i and key place j in their document, and distance δ = i − j:

    full()               every key                   window(n)               0 ≤ δ < n
    causal()             δ ≥ 0                       window(left, right)     −right ≤ δ ≤ left
    strided(l)           δ ≡ 0 (mod l)               dilated(l, n)           every l-th place of window((n − 1) l + 1)
    blocks(b)            ⌊i / b⌋ = ⌊j / b⌋           blocks(b, p, f)         −f ≤ ⌊i / b⌋ − ⌊j / b⌋ ≤ p
    first(n)             j < n                       fixed(l, c)             j mod l ≥ l − c
    global_tokens(g, …)  i or j is one of them       documents()             keys of the query's own document

    per_head(p, …)       heads in as many groups, each with a pattern of its own
    hard_alibi(h, m)     head a of the first m: 0 ≤ δ ≤ a; the others: δ ≥ 0

A pattern is kept in one normal form, a union of terms each of which is an intersection of `conditions`. An operation
executes the terms without building the matrix; `Pattern.mask` is the dense definition that it must equal.

Strided and fixed patterns: Child et al. 2019, arXiv 1904.10509. Windows, dilated windows and global tokens: Beltagy et
al. 2020, arXiv 2004.05150. Hard-ALiBi: Jelassi et al. 2024, arXiv 2402.01032.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lengthwise.errors import InputError
from lengthwise.ops.conditions import Band, Blocks, Condition, First, Fixed, Keys, Queries, Stride
from lengthwise.ops.pattern import Pattern, Term, per_head, union


def full() -> Pattern:
    """Every key."""
    return Pattern((Term(),))


def causal() -> Pattern:
    """The query's own place and all before it."""
    return only(Band(right=0))


def window(*sides: int | None) -> Pattern:
    """`window(n)`: the query's own place and the n − 1 before it. `window(left, right)`: so many places to each side,
    None for no limit.

    Raises InputError for a window of less than one place.
    """
    if len(sides) == 1:
        size = sides[0]
        if size is None or size < 1:
            raise InputError(f"window must be at least 1, got {size}")
        return only(Band(size - 1, 0))
    if len(sides) != 2:
        raise InputError(f"window takes its size, or its left and right side, got {len(sides)} values")
    for name, value in zip(("left", "right"), sides, strict=True):
        if value is not None and value < 0:
            raise InputError(f"the {name} side of a window must be at least 0, got {value}")
    return only(Band(*sides))


def strided(step: int) -> Pattern:
    """Every `step`-th key, to both sides of the query. Raises InputError for a step below 1."""
    require_at_least(1, step=step)
    return only(Stride(step))


def dilated(step: int, *sides: int) -> Pattern:
    """`dilated(step, n)`: the query's own place and n − 1 before it, each `step` further. `dilated(step, left, right)`:
    so many to each side. Raises InputError as `window` and `strided` do."""
    if not 1 <= len(sides) <= 2:
        raise InputError(f"dilated takes its step, and a window's size or its two sides, got {len(sides) + 1} values")
    require_at_least(1 if len(sides) == 1 else 0, window=min(sides))
    reach = [(sides[0] - 1) * step + 1] if len(sides) == 1 else [side * step for side in sides]
    return window(*reach) & strided(step)


def blocks(size: int, previous: int = 0, following: int = 0) -> Pattern:
    """The block of `size` places that the query is in, and so many blocks before and after it. Blocks are counted from
    the beginning of the document. Raises InputError for a size below 1, and for less than 0 blocks."""
    require_at_least(1, size=size)
    require_at_least(0, previous=previous, following=following)
    return only(Blocks(size, previous, following))


def first(size: int) -> Pattern:
    """The first keys of the document, wherever the query is. Raises InputError for less than one."""
    require_at_least(1, first=size)
    return only(First(size))


def fixed(length: int, count: int, skip: int = 0) -> Pattern:
    """The last `count` keys of every block of `length`, or the `count` before the last `skip`, wherever the query is.

    Raises InputError where a block has no such keys.
    """
    require_at_least(1, length=length, count=count)
    require_at_least(0, skip=skip)
    if skip + count > length:
        raise InputError(f"a block of {length} doesn't have {count} places before its last {skip}")
    return only(Fixed(length, length - skip - count, length - skip))


def global_tokens(*places: int) -> Pattern:
    """Everything for the queries at these places, and the keys at these places for all. Places beyond the sequence
    don't matter. Raises InputError for negative places."""
    return keys_at(*places) | queries_at(*places)


def keys_at(*places: int) -> Pattern:
    """The keys at these places of the document, wherever the query is; none where no place is given."""
    return only(Keys(_places(places)))


def queries_at(*places: int) -> Pattern:
    """Everything for the queries at these places, nothing for others."""
    return only(Queries(_places(places)))


def documents() -> Pattern:
    """Keys of the query's own document."""
    return Pattern((Term(documents=True),))


def hard_alibi(*, heads: int, masked: int | None = None) -> Pattern:
    """Hard-ALiBi: masked head a = 0, 1, … sees the query's own place and the a before it, and the heads after the
    `masked` ones see all of the past.

    So the first heads tell which tokens stand right here, and the others find where they stood before: order without
    positions. Half of the heads are masked by default. For attention with `heads` heads; one with a multiple of them
    gives each pattern to as many neighbours. Where any head sees all, the cache keeps all tokens for all heads.

    Raises InputError for less than one head, and for more masked heads than there are.
    """
    masked = heads // 2 if masked is None else masked
    require_at_least(1, heads=heads)
    require_at_least(0, masked=masked)
    if masked > heads:
        raise InputError(f"{masked} masked heads are more than the {heads} that there are")
    return per_head(*(window(head + 1) if head < masked else causal() for head in range(heads)))


PATTERNS: dict[str, Callable[..., Pattern]] = {
    "full": full,
    "causal": causal,
    "window": window,
    "dilated": dilated,
    "strided": strided,
    "fixed": fixed,
    "blocks": blocks,
    "first": first,
    "global_tokens": global_tokens,
    "keys_at": keys_at,
    "queries_at": queries_at,
    "documents": documents,
    "per_head": per_head,
    "hard_alibi": hard_alibi,
}
"""The patterns by the names that expressions use."""


def only(condition: Condition) -> Pattern:
    """The pattern of one condition."""
    return union([Term() & Term((condition,))])


def _places(places: Iterable[int]) -> tuple[int, ...]:
    chosen = tuple(sorted(set(places)))
    if chosen and chosen[0] < 0:
        raise InputError(f"a place is counted from 0 at the beginning of the document, got {chosen[0]}")
    return chosen


def require_at_least(least: int, **sizes: int) -> None:
    """Raise InputError for the first size that is too small."""
    for name, size in sizes.items():
        if size < least:
            raise InputError(f"{name} must be at least {least}, got {size}")
