"""What builds modules from a parsed expression."""

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
from lengthwise.models.expression import Combine, Expression, Leaf, Repeat, Sum, point
from lengthwise.models.stack import Residual, build_norm
from lengthwise.ops.patterns import PATTERNS
from lengthwise.positions import POSITIONS, Position
from lengthwise.positions.temperature import TEMPERATURES

PARTS: dict[str, type[SequenceModule]] = {**MIXERS, **CHANNELS}
"""Every part that an expression can name."""

VALUES: dict[str, Mapping[str, Callable[..., Any]]] = {
    "position": POSITIONS,
    "pattern": PATTERNS,
    "state_control": STATE_CONTROLS,
    "temperature": TEMPERATURES,
}
"""The tables in which the value of an argument is looked up, by the argument's name."""

NUMBERS = {"int", "float", "None"}
"""What the annotations of arguments are made of that are numbers."""

PASSED_DOWN = ("dim", "depth", "layer", "layers")
"""Arguments of a part that the model gives, and no expression."""


@dataclass(frozen=True)
class Builder:
    """Builds modules of one width from a parsed expression.

    dim: the width of every part.
    causal, position, depth: what a model passes down to the parts that inherit it.
    norm: the norm of every residual branch.
    parts: further parts by name, beside the library's own. combinators: what wraps other parts, by name.
    total, built: how many parts of each name there will be, and how many there are.
    """

    source: str
    dim: int
    causal: bool = True
    position: Position | None = None
    norm: str = "rmsnorm"
    depth: int = 1
    parts: Mapping[str, type[SequenceModule]] = field(default_factory=dict)
    combinators: Mapping[str, Callable[[Builder, Leaf], SequenceModule]] = field(default_factory=dict)
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
        if leaf.name in self.combinators:
            return self.combinators[leaf.name](self, leaf)
        known = {**PARTS, **self.parts}
        if leaf.name not in known:
            raise self.error(leaf, str(unknown("part", leaf.name, [*known, *self.combinators])))
        constructor = known[leaf.name]
        offered = {
            "causal": self.causal,
            "position": self.position,
            "depth": self.depth,
            "layer": self.built[leaf.name],
            "layers": max(self.total[leaf.name], 1),
        }
        inherited = {name: offered[name] for name in constructor.inherits}
        if self.position is not None and "position" in inherited:
            inherited["position"] = self.position.for_layer()
        module = self.call(leaf, constructor, {"dim": self.dim, **inherited})
        self.built[leaf.name] += 1
        if not self.causal and module.causal and module.receptive_field != 1:
            raise self.error(leaf, f"{leaf.name} is causal and this model isn't; write bidirectional({leaf})")
        return module

    def call(
        self, leaf: Leaf, constructor: Callable[..., Any], settings: Mapping[str, Any], table: str | None = None
    ) -> Any:
        """`constructor` called with the leaf's arguments over `settings`, every mistake placed in the source.

        table: where arguments without a name are looked up, if not by the leaf's own name.
        """
        accepted = inspect.signature(constructor).parameters
        named = {name: value for name, value in settings.items() if name in accepted}
        heads = dict(leaf.kwargs).get("heads", settings.get("heads"))
        inside = replace(self, causal=bool(dict(leaf.kwargs).get("causal", self.causal)))
        for name, value in leaf.kwargs:
            if name not in accepted or name in PASSED_DOWN:
                names = [n for n in accepted if n not in PASSED_DOWN]
                raise self.error(leaf, f"{leaf.name}: {unknown('argument', name, names)}")
            named[name] = inside.value(name, value, heads)
            if isinstance(named[name], str) and set(str(accepted[name].annotation).split(" | ")) <= NUMBERS:
                raise self.error(leaf, f"{leaf.name}: {name} must be a number, got {value}")
        try:
            return constructor(*(inside.value(table or leaf.name, value, heads) for value in leaf.args), **named)
        except (InputError, TypeError) as mistake:
            raise self.error(leaf, f"{leaf.name}: {mistake}") from mistake

    def value(self, name: str, value: Any, heads: int | None = None) -> Any:
        """The value of an argument: a number or a text as it is, a name looked up in the argument's table.

        What is looked up is told the width, and the direction and the number of heads of the part, where it asks.
        """
        if isinstance(value, Combine):
            left, right = self.value(name, value.left, heads), self.value(name, value.right, heads)
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
        return self.call(value, VALUES[name][value.name], known, name)

    def error(self, leaf: Leaf, message: str) -> InputError:
        """The error that points at a leaf, unless it points somewhere already."""
        return InputError(message) if " of the expression:" in message else point(self.source, leaf.place, message)
