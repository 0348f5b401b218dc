"""The width at which a model has a given number of parameters, found by counting on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from lengthwise.comparison.candidates import Contender, with_count
from lengthwise.errors import InputError
from lengthwise.models.expression import Repeat, parse
from lengthwise.models.language_model import LanguageModel

TOLERANCE = 0.025
"""Each candidate lies this close to the target, so that any two agree within 5 %."""

STEPS = (32, 16, 8, 4, 2)
"""Widths are multiples of the first of these that comes close enough."""

WIDEST = 1 << 15
FAVOURITE = 128
"""Where the depth of a published system may be changed, the one whose width comes nearest to this is taken."""


@lru_cache(maxsize=4096)
def parameters(layers: str, dim: int, vocab_size: int, position: str) -> int:
    """Parameters of a language model, counted without memory for them."""
    with torch.device("meta"):
        model = LanguageModel(vocab_size=vocab_size, dim=dim, layers=layers, position=position)
    return sum(p.numel() for p in model.parameters())


def solve_width(layers: str, target: int, vocab_size: int, position: str) -> int:
    """The width at which the model has `target` parameters within 2.5 %.

    Raises InputError where no even width does, with the nearest that can be had.
    """
    parse(layers)
    nearest: tuple[float, int, int] | None = None
    for step in STEPS:
        for dim, count in _around(lambda d: parameters(layers, d, vocab_size, position), target, step):
            off = abs(count / target - 1)
            if nearest is None or off < nearest[0]:
                nearest = (off, dim, count)
        if nearest is not None and nearest[0] <= TOLERANCE:
            return nearest[1]
    if nearest is None:
        # nothing could be built at any width: the reason is the same at each, so one more try tells it
        parameters(layers, FAVOURITE, vocab_size, position)
        raise InputError(f"{layers} can't be built at any width with about {target:,} parameters")
    raise InputError(
        f"{layers} can't have {target:,} parameters within {TOLERANCE:.1%}; the nearest is {nearest[2]:,} at width "
        f"{nearest[1]}; give another --parameters"
    )


def _around(count: Callable[[int], int], target: int, step: int) -> list[tuple[int, int]]:
    """The widths that can be built, in multiples of `step`, just below and above the target, with their counts."""

    def at_or_after(dim: int) -> tuple[int, int] | None:
        """The first width from `dim` on that the heads divide."""
        for candidate in range(dim, dim + 16 * step, step):
            try:
                return candidate, count(candidate)
            except InputError:
                continue
        return None

    low, high = 1, WIDEST // step
    while low < high:
        middle = (low + high) // 2
        found = at_or_after(middle * step)
        if found is None or found[1] >= target:
            high = middle
        else:
            low = middle + 1
    near = (at_or_after(multiple * step) for multiple in range(max(1, low - 3), low + 2))
    return [found for found in near if found is not None]


def solve(contender: Contender, target: int, vocab_size: int, position: str) -> tuple[str, int]:
    """The expression and the width of a contender. Where its depth is free, that which gives a usual width."""
    tree = parse(contender.layers)
    if not contender.flexible or not isinstance(tree, Repeat):
        return contender.layers, solve_width(contender.layers, target, vocab_size, position)
    choices = []
    for count in range(1, tree.count + 1):
        layers = with_count(contender.layers, count)
        try:
            choices.append((layers, solve_width(layers, target, vocab_size, position)))
        except InputError:
            continue
    if not choices:
        return contender.layers, solve_width(contender.layers, target, vocab_size, position)
    return min(choices, key=lambda choice: abs(choice[1] - FAVOURITE))
