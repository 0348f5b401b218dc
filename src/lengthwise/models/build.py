"""From an expression to modules."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lengthwise.channels import CHANNELS
from lengthwise.contract import SequenceModule
from lengthwise.errors import InputError, unknown
from lengthwise.mixers import MIXERS
from lengthwise.mixers.heads import default_heads
from lengthwise.mixers.state_control import STATE_CONTROLS
from lengthwise.models.expression import Combine, Expression, Leaf, Repeat, Sum, parse, point
from lengthwise.models.perspectives import Perspectives
from lengthwise.models.stack import Bidirectional, Chain, Residual, Stack, TwoHop, build_norm
from lengthwise.ops.patterns import PATTERNS
from lengthwise.positions import POSITIONS, Position

PARTS: dict[str, type[SequenceModule]] = {**MIXERS, **CHANNELS}
"""Every part that an expression can name."""

VALUES: dict[str, Mapping[str, Callable[..., Any]]] = {
    "position": POSITIONS,
    "pattern": PATTERNS,
    "state_control": STATE_CONTROLS,
}
"""The tables in which the value of an argument is looked up, by the argument's name."""

PASSED_DOWN = ("dim", "depth", "layer", "layers")
"""Arguments of a part that the model gives, and no expression."""


@dataclass(frozen=True)
class Builder:
    """Builds modules of one width from a parsed expression.

    dim: the width of every part.
    causal, position, depth: what a model passes down to the parts that inherit it.
    norm: the norm of every residual branch.
    parts: further parts by name, beside the library's own.
    total, built: how many parts of each name there will be, and how many there are.
    """

    source: str
    dim: int
    causal: bool = True
    position: Position | None = None
    norm: str = "rmsnorm"
    depth: int = 1
    parts: Mapping[str, type[SequenceModule]] = field(default_factory=dict)
    total: Counter[str] = field(default_factory=Counter)
    built: Counter[str] = field(default_factory=Counter)

    def branches(self, tree: Expression) -> list[SequenceModule]:
        """The residual branches that a tree unrolls to, in order, and what stands between them."""
        if isinstance(tree, Sum):
            return [branch for term in tree.terms for branch in self.branches(term)]
        if isinstance(tree, Repeat):
            return [branch for _ in range(tree.count) for branch in self.branches(tree.body)]
        part = self.part(tree)
        if not part.residual:
            return [part]
        return [Residual(part, build_norm(self.norm, self.dim) if part.prenorm else nn.Identity())]

    def part(self, leaf: Leaf) -> SequenceModule:
        """The part that a leaf names, without a residual branch."""
        if leaf.name in COMBINATORS:
            return COMBINATORS[leaf.name](self, leaf)
        known = {**PARTS, **self.parts}
        if leaf.name not in known:
            raise self.error(leaf, str(unknown("part", leaf.name, [*known, *COMBINATORS])))
        constructor = known[leaf.name]
        offered = {
            "causal": self.causal,
            "position": self.position,
            "depth": self.depth,
            "layer": self.built[leaf.name],
            "layers": max(self.total[leaf.name], 1),
        }
        inherited = {name: offered[name] for name in constructor.inherits}
        module = self.call(leaf, constructor, {"dim": self.dim, **inherited})
        self.built[leaf.name] += 1
        if not self.causal and module.causal and module.receptive_field != 1:
            raise self.error(leaf, f"{leaf.name} is causal and this model isn't; write bidirectional({leaf})")
        return module

    def call(self, leaf: Leaf, constructor: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
        """`constructor` called with the leaf's arguments over `settings`, every mistake placed in the source."""
        accepted = inspect.signature(constructor).parameters
        named = {name: value for name, value in settings.items() if name in accepted}
        for name, value in leaf.kwargs:
            if name not in accepted or name in PASSED_DOWN:
                names = [n for n in accepted if n not in PASSED_DOWN]
                raise self.error(leaf, f"{leaf.name}: {unknown('argument', name, names)}")
            named[name] = self.value(name, value, dict(leaf.kwargs).get("heads"))
        try:
            return constructor(*(self.value(leaf.name, value) for value in leaf.args), **named)
        except (InputError, TypeError) as mistake:
            raise self.error(leaf, f"{leaf.name}: {mistake}") from mistake

    def value(self, name: str, value: Any, heads: int | None = None) -> Any:
        """The value of an argument: a number or a text as it is, a name looked up in the argument's table.

        What is looked up is told the width, the direction and the number of heads, where it asks for them.
        """
        if isinstance(value, Combine):
            left, right = self.value(name, value.left), self.value(name, value.right)
            return left & right if value.operator == "&" else left | right
        if not isinstance(value, Leaf):
            return value
        if name not in VALUES:
            if value.args or value.kwargs:
                raise self.error(value, f"{name} takes a plain value, got {value}")
            return value.name
        if value.name not in VALUES[name]:
            raise self.error(value, str(unknown(name, value.name, VALUES[name])))
        known = {"dim": self.dim, "causal": self.causal, "heads": heads or default_heads(self.dim)}
        return self.call(value, VALUES[name][value.name], known)

    def error(self, leaf: Leaf, message: str) -> InputError:
        """The error that points at a leaf, unless it points somewhere already."""
        return InputError(message) if " of the expression:" in message else point(self.source, leaf.place, message)


def bidirectional(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`bidirectional(mixer)`: a causal mixer and a twin with weights of its own that reads backwards, added."""
    if len(leaf.args) != 1 or not isinstance(leaf.args[0], Leaf) or leaf.kwargs:
        raise builder.error(leaf, f"bidirectional takes one mixer, as bidirectional(mamba), got {leaf}")
    ahead, back = replace(builder, causal=True), replace(builder, causal=True, built=Counter(builder.built))
    return Bidirectional(ahead.part(leaf.args[0]), back.part(leaf.args[0]))


def two_hop(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`two_hop(mixer + channels)`: the second reads the sum with the first, and adds to what the first was given."""
    parts = builder.branches(leaf.args[0]) if len(leaf.args) == 1 and not leaf.kwargs else []
    if len(parts) != 2 or not (isinstance(parts[0], Residual) and isinstance(parts[1], Residual)):
        raise builder.error(leaf, f"two_hop takes two parts in a row, as two_hop(megalodon + swiglu), got {leaf}")
    return TwoHop(parts[0], parts[1])


def chain(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`chain(rwkv + integrate_and_fire)`: parts one after the other on one residual branch."""
    terms = leaf.args[0].terms if len(leaf.args) == 1 and isinstance(leaf.args[0], Sum) else ()
    if not terms or leaf.kwargs or not all(isinstance(term, Leaf) for term in terms):
        raise builder.error(leaf, f"chain takes parts in a row, as chain(rwkv + integrate_and_fire), got {leaf}")
    return Chain([builder.part(term) for term in terms if isinstance(term, Leaf)])


def perspectives(builder: Builder, leaf: Leaf) -> SequenceModule:
    """`perspectives(3*(rwkv + rwkv_channels), views=2)`: views of the sequence through shared weights, then the model's
    norm, then their blend."""
    settings = dict(leaf.kwargs)
    if len(leaf.args) != 1 or not isinstance(leaf.args[0], Expression):
        raise builder.error(leaf, f"perspectives takes layers, as perspectives(rwkv + rwkv_channels), got {leaf}")
    for name in settings:
        if name not in ("views", "blend"):
            raise builder.error(leaf, f"perspectives: {unknown('argument', name, ['views', 'blend'])}")
    named = {name: builder.value(name, value) for name, value in settings.items()}
    branches = builder.branches(leaf.args[0])
    try:
        return Perspectives(branches, build_norm(builder.norm, builder.dim), builder.dim, **named)
    except (InputError, TypeError) as mistake:
        raise builder.error(leaf, f"perspectives: {mistake}") from mistake


COMBINATORS: dict[str, Callable[[Builder, Leaf], SequenceModule]] = {
    "bidirectional": bidirectional,
    "chain": chain,
    "perspectives": perspectives,
    "two_hop": two_hop,
}
"""What wraps other parts, by the names that expressions use."""


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
        expression, dim, settings.causal, settings.position, settings.norm, depth, settings.parts or {}, total
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


def build_position(expression: str, dim: int, causal: bool = True) -> Position:
    """The position encoding that an expression such as `rope(base=10000)` names."""
    tree = parse(expression)
    if not isinstance(tree, Leaf):
        raise InputError(f'a position is a single name, as "rope" or "learned(length=512)", got {expression!r}')
    return Builder(expression, dim, causal).value("position", tree)
