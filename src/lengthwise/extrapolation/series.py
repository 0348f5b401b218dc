"""The lines of a report: a model as it was trained, or stretched by a scaling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lengthwise.positions.stretch import SCALINGS
from lengthwise.reports.style import Style, styles

JOIN = " + "
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Series:
    """A model and a scaling; the name that both have together in the results."""

    model: str
    scaling: str = "none"

    @property
    def name(self) -> str:
        """The model's name, with the scaling where there is one."""
        return self.model if self.scaling == "none" else f"{self.model}{JOIN}{self.scaling}"


def series_of(name: str) -> Series:
    """The series of a name in the results."""
    model, join, scaling = name.rpartition(JOIN)
    return Series(model, scaling) if join and scaling in SCALINGS else Series(name)


def looks(names: Sequence[str]) -> dict[str, Style]:
    """How the series are drawn: a colour for each model, a dash for each scaling."""
    each = [series_of(name) for name in names]
    colours = styles(list(dict.fromkeys(s.model for s in each)))
    dashes = dict(zip(SCALINGS, DASHES, strict=False))
    return {s.name: Style(colours[s.model].colour, colours[s.model].symbol, dashes[s.scaling]) for s in each}


def scalings_in(names: Iterable[str]) -> list[str]:
    """The scalings that some series have, in the order of the table of scalings, without "none"."""
    found = {series_of(name).scaling for name in names}
    return [scaling for scaling in SCALINGS if scaling in found and scaling != "none"]


def beside(names: Iterable[str], scaling: str) -> list[str]:
    """The series of one scaling, each after that of the same model as it was trained; with "none" only the latter."""
    known = list(names)
    if scaling == "none":
        return [name for name in known if series_of(name).scaling == "none"]
    stretched = [name for name in known if series_of(name).scaling == scaling]
    return [name for one in stretched for name in (series_of(one).model, one) if name in known]
