"""Which models are compared: the six of the default, the user's expressions, or published systems by key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lengthwise.errors import InputError
from lengthwise.models.expression import Expression, Leaf, Repeat, Sum, parse
from lengthwise.systems import find_system


@dataclass(frozen=True)
class Contender:
    """A model to compare, before its width is known. `flexible`: its count of layers may be changed."""

    name: str
    layers: str
    flexible: bool = False


DEFAULT = (
    Contender("Softmax attention", "3*(attention + swiglu)"),
    Contender("Sliding window", "3*(attention(window=128) + swiglu)"),
    Contender("Linear attention", "3*(linear_attention(position=rope) + swiglu)"),
    Contender("DeltaNet", "3*(deltanet + swiglu)"),
    Contender("Mamba", "6*mamba"),
    Contender("Hybrid", "2*(mamba + attention(window=128) + swiglu)"),
)
"""Softmax attention, a window of it, two recurrences with a matrix as state, a selective state space, and a hybrid.
A Mamba block has about 6 D² parameters and attention with SwiGLU 12 D², so the depths make the widths about equal."""

NAMED = re.compile(r"\s*([^:()*+\"']{1,40}?)\s*:\s*(.+)", re.DOTALL)


def contenders(layers: Sequence[str], systems: Sequence[str]) -> list[Contender]:
    """The models that the options name; without any, the default six. Raises InputError for a typo or a name twice."""
    found = [_from_expression(text) for text in layers] + [_from_system(key) for key in systems]
    found = found or list(DEFAULT)
    names = [c.name for c in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"two candidates are called {twice!r}; name them apart, as --layers 'first: {found[0].layers}'"
        )
    return found


def _from_expression(text: str) -> Contender:
    match = NAMED.fullmatch(text)
    name, source = (match[1], match[2].strip()) if match else ("", text.strip())
    tree = parse(source)
    return Contender(name or str(tree), source)


def _from_system(key: str) -> Contender:
    system = find_system(key)
    if not system.expression:
        raise InputError(f"system {key!r} is no language model made of layers; `lengthwise show {key}` says what it is")
    return Contender(key, system.expression, flexible=count_of(system.expression) is not None)


def count_of(layers: str) -> int | None:
    """How often an expression repeats its layers; None where it doesn't, or repeats several things."""
    found = outermost(parse(layers))
    return found[0].count if len(found) == 1 else None


def outermost(tree: Expression) -> list[Repeat]:
    """What a tree repeats, without what is repeated inside of that."""
    if isinstance(tree, Repeat):
        return [tree]
    inside = tree.terms if isinstance(tree, Sum) else [arg for arg in tree.args if isinstance(arg, Expression)]
    return [repeat for part in inside for repeat in outermost(part)]


def with_count(layers: str, count: int) -> str:
    """An expression with the outermost repeat count replaced."""
    return str(_replaced(parse(layers), count))


def _replaced(tree: Expression, count: int) -> Expression:
    if isinstance(tree, Repeat):
        return Repeat(count, tree.body)
    if isinstance(tree, Sum):
        return Sum(tuple(_replaced(term, count) for term in tree.terms))
    arguments = (_replaced(arg, count) if isinstance(arg, Expression) else arg for arg in tree.args)
    return Leaf(tree.name, tuple(arguments), tree.kwargs, tree.place)
