"""The width at which a model has a given number of parameters, found by counting on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from lengthwise.comparison.candidates import Contender, count_of, with_count
from lengthwise.errors import InputError
from lengthwise.models.language_model import LanguageModel

TOLERANCE = 0.025
"""Each candidate lies this close to one number of parameters, so that any two agree within 5 %."""

SHIFTS = (0.0, 0.01, -0.01, 0.02, -0.02, 0.03, -0.03, 0.045, -0.045, 0.06, -0.06, 0.08, -0.08, 0.1, -0.1)
"""How far that number may lie from the one asked for, where no widths fit closer."""

STEPS = (32, 16, 8, 4, 2)
"""Widths are multiples of the first of these that comes close enough."""

WIDEST = 1 << 15
DIVISIBLE = 55440 * 4
"""A width that all usual numbers of heads divide: what can't be built here can't be built at any width."""

FAVOURITE = 128
"""Where the depth of a published system may be changed, the one whose width comes nearest to this is taken."""


@lru_cache(maxsize=4096)
def parameters(layers: str, dim: int, vocab_size: int, position: str) -> int:
    """Parameters of a language model, counted without memory for them."""
    with torch.device("meta"):
        model = LanguageModel(vocab_size=vocab_size, dim=dim, layers=layers, position=position)
    return sum(p.numel() for p in model.parameters())


class NoWidth(InputError):
    """No width gives the number of parameters asked for."""


def solve_width(layers: str, target: int, vocab_size: int, position: str) -> int:
    """The width at which the model has `target` parameters within 2.5 %.

    Raises NoWidth where no even width does, with the nearest that can be had.
    """
    parameters(layers, DIVISIBLE, vocab_size, position)
    seen: dict[int, int] = {}
    below, above = 0, WIDEST
    for step in STEPS:
        found = _around(lambda d: parameters(layers, d, vocab_size, position), target, step, below, above)
        seen.update(found)
        best = min(seen, key=lambda dim: abs(seen[dim] - target), default=0)
        if best and abs(seen[best] / target - 1) <= TOLERANCE:
            return best
        below = max((dim for dim, count in seen.items() if count < target), default=0)
        above = min((dim for dim, count in seen.items() if count >= target), default=WIDEST)
    raise NoWidth(
        f"{layers} can't have {target:,} parameters within {TOLERANCE:.1%}; the nearest is {seen.get(best, 0):,} at "
        f"width {best}; give another --parameters"
    )


def _around(count: Callable[[int], int], target: int, step: int, below: int, above: int) -> list[tuple[int, int]]:
    """The widths that can be built, in multiples of `step` between two bounds, on both sides of the target."""

    def at_or_after(dim: int) -> tuple[int, int] | None:
        """The first width from `dim` on that the heads divide."""
        for candidate in range(dim, dim + 16 * step, step):
            try:
                return candidate, count(candidate)
            except InputError:
                continue
        return None

    low, high = max(1, below // step), max(1, above // step)
    while low < high:
        middle = (low + high) // 2
        found = at_or_after(middle * step)
        if found is None or found[1] >= target:
            high = middle
        else:
            low = middle + 1
    near = (at_or_after(multiple * step) for multiple in range(max(1, low - 1), low + 1))
    return [found for found in near if found is not None]


def solve_all(models: Sequence[Contender], target: int, vocab_size: int, position: str) -> list[tuple[str, int]]:
    """Expressions and widths of all contenders, which agree within 5 % in parameters and lie near the target.

    Raises NoWidth where no number of parameters within a tenth of the target can be had by all.
    """
    first: NoWidth | None = None
    for shift in SHIFTS:
        try:
            return [solve(model, round(target * (1 + shift)), vocab_size, position) for model in models]
        except NoWidth as error:
            first = first or error
    raise first or InputError("there are no candidates to compare")


def solve(contender: Contender, target: int, vocab_size: int, position: str) -> tuple[str, int]:
    """The expression and the width of a contender. Where its depth is free, that which gives a usual width."""
    deepest = count_of(contender.layers)
    if not contender.flexible or deepest is None:
        return contender.layers, solve_width(contender.layers, target, vocab_size, position)
    choices = []
    for count in range(1, deepest + 1):
        layers = with_count(contender.layers, count)
        try:
            choices.append((layers, solve_width(layers, target, vocab_size, position)))
        except NoWidth:
            continue
    if not choices:
        return contender.layers, solve_width(contender.layers, target, vocab_size, position)
    return min(choices, key=lambda choice: abs(choice[1] - FAVOURITE))
