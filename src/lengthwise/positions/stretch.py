"""A trained model for longer contexts than it was trained at: its positions changed for as long as it is measured.

    with stretched(model, "ntk", trained=64, length=512):
        logits, _ = model(tokens)               # [batch, 512]; afterwards the model is as it was

Nothing is trained. Up to the trained length every scaling leaves the model as it is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Num
from torch import Tensor, nn

from lengthwise.errors import InputError, unknown
from lengthwise.positions.grid import Grid
from lengthwise.positions.learned import Learned
from lengthwise.positions.position import Hook, Position
from lengthwise.positions.randomised import Draw
from lengthwise.positions.rope import RoPE
from lengthwise.positions.seqpe_table import Encodings
from lengthwise.positions.sinusoidal import Sinusoidal
from lengthwise.positions.temperature import Constant, LogScaling


@dataclass(frozen=True)
class Change:
    """A value that an attribute of a module has while it is stretched."""

    owner: nn.Module
    name: str
    value: Any


@dataclass(frozen=True)
class Scaling:
    """One way to stretch. `serves` says which positions it is for; `changes` gives what it sets for a model, its
    trained length and the length to reach: nothing in a model that it isn't for."""

    serves: str
    changes: Callable[[nn.Module, int, int], list[Change]]

    def applies(self, model: nn.Module) -> bool:
        """Whether it changes anything in a model."""
        return bool(self.changes(model, 1, 2))


class Interpolated(Position):
    """An encoding of the embeddings read at positions between those that it was trained at: e(p / factor).

    Chen et al. 2023, arXiv 2306.15595, for absolute positions.
    """

    hooks: ClassVar[tuple[Hook, ...]] = ("embed",)

    def __init__(self, inner: Position, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def embed(
        self, x: Float[Tensor, "batch length dim"], positions: Num[Tensor, "... length"]
    ) -> Float[Tensor, "batch length dim"]:
        """The embeddings with their squeezed positions."""
        return self.inner.embed(x, positions / self.factor)


def interpolated(model: nn.Module, trained: int, length: int) -> list[Change]:
    """p ← p · trained / length, so that no position lies beyond the trained ones.

    Of rotary positions `scale` grows by the factor; sinusoidal ones are read in between. Chen et al. 2023, arXiv
    2306.15595.
    """
    factor = factor_of(trained, length)
    changes = [Change(part, "scale", part.scale * factor) for part, _ in rotary(model)]
    absolute = getattr(model, "position", None)
    if isinstance(absolute, Sinusoidal):
        changes.append(Change(model, "position", Interpolated(absolute, factor)))
    return changes


def rebased(model: nn.Module, trained: int, length: int) -> list[Change]:
    """base ← base · factor^(D / (D − 2)) with factor = length / trained and D turned channels of a head.

    The slowest pair of channels then turns as if interpolated, θ_{D/2−1} / factor, and the fastest as before: what is
    near keeps its angles. Known as NTK-aware scaling (bloc97 2023); arXiv 2309.00071 compares it. A head of one pair
    has no slowest beside the fastest and stays as it is.
    """
    factor = factor_of(trained, length)
    return [
        Change(part, "base", part.base * factor ** (turned / (turned - 2)))
        for part, turned in rotary(model)
        if turned > 2
    ]


def tempered(model: nn.Module, trained: int, length: int) -> list[Change]:
    """Logits times log(1 + n) / log(1 + trained), for a query that sees n tokens and more than the trained length.

    It keeps attention over many keys as sharp as it was over few. Beside a bias, which isn't multiplied by the query,
    all queries share the number that the last one would have. Attention with a temperature of its own keeps it.
    """
    even = Constant(1 / (math.log(1 + max(trained, length)) / math.log(1 + trained)))
    found: list[Change] = []
    for part in model.modules():
        if getattr(part, "sharpens", False) and part.temperature is None:
            position = getattr(part, "position", None)
            biased = isinstance(position, Position) and position.has("bias")
            found.append(Change(part, "temperature", even if biased else LogScaling(trained)))
    return found


SCALINGS: dict[str, Scaling] = {
    "none": Scaling("every model", lambda *_: []),
    "interpolation": Scaling("rope and sinusoidal positions", interpolated),
    "ntk": Scaling("rope", rebased),
    "temperature": Scaling("softmax attention", tempered),
}
"""The scalings by name; "none" measures a model as it was trained."""


def find_scaling(name: str) -> Scaling:
    """The scaling of that name. Raises InputError with the nearest where there is none."""
    if name not in SCALINGS:
        raise unknown("scaling", name, SCALINGS)
    return SCALINGS[name]


@contextlib.contextmanager
def stretched(model: nn.Module, how: str, trained: int, length: int) -> Iterator[None]:
    """Within this, `model` reads up to `length` tokens by the scaling `how`; afterwards it is as before.

    trained: the context length in training. Raises InputError for an unknown scaling, for one that isn't for the
    positions of this model, and for lengths below 1.
    """
    if trained < 1 or length < 1:
        raise InputError(f"lengths must be at least 1, got trained={trained} and length={length}")
    scaling = find_scaling(how)
    changes = scaling.changes(model, trained, length)
    if how != "none" and not changes:
        raise InputError(f"{how} is for {scaling.serves}, and this model has none")
    before = [(change, getattr(change.owner, change.name)) for change in changes]
    try:
        for change in changes:
            setattr(change.owner, change.name, change.value)
        yield
    finally:
        for change, value in before:
            setattr(change.owner, change.name, value)


def factor_of(trained: int, length: int) -> float:
    """How many times the trained length is to be reached; 1 up to it."""
    return max(1.0, length / trained)


def rotary(model: nn.Module) -> list[tuple[Any, int]]:
    """The parts of a model that turn channels by `base` and `scale`, each once, with how many of a head they turn."""
    found: dict[int, tuple[Any, int]] = {}
    for owner in model.modules():
        width = getattr(owner, "head_dim", None)
        if width is None:
            continue
        for part in owner.children():
            if isinstance(part, RoPE):
                found[id(part)] = part, part.rotated(width)
    return list(found.values())


def end_of(model: nn.Module) -> int | None:
    """How many positions a model can read; None where there is no end."""
    ends = [part.length for part in model.modules() if isinstance(part, Learned)]
    ends += [part.width * part.height for part in model.modules() if isinstance(part, Grid)]
    ends += [part.longest for part in model.modules() if isinstance(part, Draw)]
    ends += [part.end for part in model.modules() if isinstance(part, Encodings)]
    return min(ends, default=None)
