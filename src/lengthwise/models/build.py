"""From an expression to modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from lengthwise.contract import SequenceModule
from lengthwise.errors import InputError
from lengthwise.models.builder import PARTS, Builder
from lengthwise.models.combinators import COMBINATORS
from lengthwise.models.expression import Expression, Leaf, Repeat, Sum, parse
from lengthwise.models.stack import Stack
from lengthwise.ops.pattern import Pattern
from lengthwise.positions import Position


def count_parts(tree: Expression) -> Counter[str]:
    """How many parts of each name a tree unrolls to; what reads both ways counts once."""
    if isinstance(tree, Sum):
        return sum((count_parts(term) for term in tree.terms), Counter())
    if isinstance(tree, Repeat):
        return Counter({name: tree.count * count for name, count in count_parts(tree.body).items()})
    if tree.name in COMBINATORS:
        return sum((count_parts(arg) for arg in tree.args if isinstance(arg, Expression)), Counter())
    return Counter({tree.name: 1})


@dataclass(frozen=True)
class Settings:
    """What a model passes down to the parts of its expression."""

    causal: bool = True
    position: Position | None = None
    norm: str = "rmsnorm"
    parts: Mapping[str, type[SequenceModule]] | None = None


def start(expression: str, dim: int, settings: Settings) -> tuple[Builder, Expression]:
    """The builder for an expression, and its tree."""
    if dim < 1:
        raise InputError(f"dim must be at least 1, got {dim}")
    tree = parse(expression)
    total, known = count_parts(tree), {**PARTS, **(settings.parts or {})}
    depth = sum(count for name, count in total.items() if name not in known or known[name].residual)
    builder = Builder(
        expression,
        dim,
        causal=settings.causal,
        position=settings.position,
        norm=settings.norm,
        depth=depth,
        parts=settings.parts or {},
        combinators=COMBINATORS,
        total=total,
    )
    return builder, tree


def build_stack(expression: str, dim: int, settings: Settings) -> Stack:
    """The residual branches that an expression describes, in a stack even where there is only one."""
    builder, tree = start(expression, dim, settings)
    return Stack(builder.branches(tree))


def build(
    expression: str,
    dim: int,
    *,
    causal: bool = True,
    position: Position | None = None,
    norm: str = "rmsnorm",
    parts: Mapping[str, type[SequenceModule]] | None = None,
) -> SequenceModule:
    """The module that an expression describes: a bare part for a single name, else residual branches in a stack.

    dim: the width. causal, position: passed down to the parts that take them and don't set them.
    parts: your own part classes by name, to use beside the library's.

    Raises InputError that points at the place of a mistake.
    """
    builder, tree = start(expression, dim, Settings(causal, position, norm, parts))
    module = builder.part(tree) if isinstance(tree, Leaf) else Stack(builder.branches(tree))
    module.dim = dim  # type: ignore[assignment]  # the laws read the width of their inputs from it
    return module


def build_position(expression: str, dim: int, causal: bool = True, heads: int | None = None) -> Position:
    """The position encoding that an expression such as `rope(base=10000)` names. heads: of the attention it is for."""
    tree = parse(expression)
    if not isinstance(tree, Leaf):
        raise InputError(f'a position is a single name, as "rope" or "learned(length=512)", got {expression!r}')
    return Builder(expression, dim, causal).value("position", tree, heads)


def heads_of(layers: str) -> int | None:
    """The number of heads that all parts of an expression which have any agree on, None where they don't."""

    def found(tree: Expression) -> set[int]:
        if isinstance(tree, Sum):
            return set().union(*map(found, tree.terms))
        if isinstance(tree, Repeat):
            return found(tree.body)
        own = {value for name, value in tree.kwargs if name == "heads" and isinstance(value, int)}
        return own.union(*(found(arg) for arg in tree.args if isinstance(arg, Expression)))

    heads = found(parse(layers))
    return heads.pop() if len(heads) == 1 else None


def build_pattern(expression: str) -> Pattern:
    """The pattern that an expression such as `causal() & (window(512) | first(4))` describes."""
    tree = parse(f"attention(pattern={expression})")
    if not isinstance(tree, Leaf):
        raise InputError(f"a pattern is names with & and |, as window(512) | first(4), got {expression!r}")
    return Builder(expression, 1).value("pattern", dict(tree.kwargs)["pattern"])
