"""What a system of the catalogue is: its paper, its parts, its claim, and the experiment that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lengthwise.errors import InputError


@dataclass(frozen=True)
class Figure:
    """One measured number of an experiment. `holds` is None where there is no threshold."""

    name: str
    measured: float
    threshold: str = ""
    claimed: str = ""
    holds: bool | None = None
    note: str = ""


def at_least(name: str, measured: float, threshold: float, claimed: str = "", note: str = "") -> Figure:
    """A figure that holds from `threshold` up. NaN doesn't hold."""
    return Figure(name, float(measured), f"≥ {threshold:g}", claimed, bool(measured >= threshold), note)


def at_most(name: str, measured: float, threshold: float, claimed: str = "", note: str = "") -> Figure:
    """A figure that holds up to `threshold`. NaN doesn't hold."""
    return Figure(name, float(measured), f"≤ {threshold:g}", claimed, bool(measured <= threshold), note)


def reported(name: str, measured: float, claimed: str = "", note: str = "") -> Figure:
    """A figure without a threshold."""
    return Figure(name, float(measured), "", claimed, None, note)


def of_seeds(seeds: Sequence[int], middle: str = "median") -> str:
    """What a number is of several seeds, as its name says it: "median of 3 seeds", or "seed 0" for one alone."""
    return f"{middle} of {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"


def silent(text: str, fraction: float) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Run:
    """How an experiment is run: its seeds, and where it tells how far it is.

    progress: called with what is being done and the fraction of the experiment that is done.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    progress: Callable[[str, float], None] = silent

    def __post_init__(self) -> None:
        if not self.seeds:
            raise InputError("an experiment needs at least one seed, got none")


Experiment = Callable[[Run], Iterator[Figure]]


@dataclass
class System:
    """A published system.

    parts: what it is made of, as ROOM.NAME. expression: its layers. pattern: who sees whom in it, at a size that can be
    drawn.
    """

    key: str
    title: str
    arxiv: str
    parts: Sequence[str]
    claim: str
    expression: str = ""
    pattern: str = ""
    _experiment: Experiment | None = field(default=None, repr=False)

    def experiment(self, fn: Experiment) -> Experiment:
        """Decorator: `fn` is the experiment that shows the claim."""
        self._experiment = fn
        return fn

    def reproduce(self, run: Run | None = None) -> Iterator[Figure]:
        """Run the experiment; yields each figure as soon as it is measured."""
        if self._experiment is None:
            raise InputError(f"system {self.key!r} has no experiment")
        return self._experiment(run or Run())
