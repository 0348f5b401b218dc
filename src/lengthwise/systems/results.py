"""What experiments measured, as files: one KEY.json for each system, with machine, versions and date."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError
from lengthwise.reports.numbers import significant
from lengthwise.systems.system import Figure

SCHEMA = 1

FOLDER = Path("results")
"""Where results are written and looked for, in the folder that a command runs in."""


@dataclass(frozen=True)
class Result:
    """One run of a system's experiment. `complete` is False where it was stopped before its end.

    date: when it ended, UTC, ISO 8601. seconds: how long it took. machine, versions: what ran it.
    """

    key: str
    date: str
    seconds: float
    seeds: tuple[int, ...]
    figures: tuple[Figure, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    complete: bool = True

    @property
    def holds(self) -> bool:
        """Everything that has a threshold was measured and holds."""
        return self.complete and all(figure.holds is not False for figure in self.figures)

    @property
    def verdict(self) -> str:
        """The outcome in words."""
        if not self.complete:
            return "stopped"
        return "holds" if self.holds else "does not hold"

    def same_conditions(self, seeds: Sequence[int], versions: dict[str, str]) -> bool:
        """Whether a run with these seeds and versions would only repeat this one."""
        return self.complete and self.seeds == tuple(seeds) and self.versions == versions

    def to_json(self) -> dict[str, Any]:
        """What the file holds. A number that isn't finite is written as text."""
        figures = [asdict(f) | {"measured": _number(f.measured)} for f in self.figures]
        return {"schema": SCHEMA, **asdict(self), "seeds": list(self.seeds), "figures": figures, "holds": self.holds}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Result:
        """The result that `to_json` wrote."""
        given = {name: value for name, value in content.items() if name not in ("schema", "holds")}
        figures = tuple(Figure(**row | {"measured": float(row["measured"])}) for row in given.pop("figures"))
        return Result(**given | {"seeds": tuple(given["seeds"])}, figures=figures)


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def path_of(key: str, folder: Path = FOLDER, complete: bool = True) -> Path:
    """The file of a system's result; a run that was stopped has a file of its own, and replaces no whole one."""
    return folder / (f"{key}.json" if complete else f"{key}.partial.json")


def write_result(result: Result, folder: Path = FOLDER) -> Path:
    """Write a result, whole or not at all, and return its path."""
    from lengthwise.models.files import write_json

    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(result.key, folder, result.complete)
    write_json(path, result.to_json())
    if result.complete:
        path_of(result.key, folder, complete=False).unlink(missing_ok=True)
    return path


def read_result(key: str, folder: Path = FOLDER) -> Result | None:
    """The last whole result of a system in a folder, None where there is none."""
    path = path_of(key, folder)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {content['schema']}, this version reads {SCHEMA}; run reproduce again")
        return Result.from_json(content)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} isn't a result of lengthwise reproduce ({error}); delete it and run again") from None


def last_result(key: str) -> Result | None:
    """The last whole result of a system: in ./results, else the one that was published with this version."""
    published = Path(__file__).parent.parent / "results"
    checkout = Path(__file__).parents[3] / "results"
    for folder in (FOLDER, published, checkout):
        result = read_result(key, folder)
        if result is not None:
            return result
    return None


def show_number(value: float) -> str:
    """A measured number to four significant digits."""
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.2e}"
    return significant(value, 4)


def show_verdict(figure: Figure) -> str:
    """Whether a figure holds, in words; nothing for one without a threshold."""
    return {True: "holds", False: "does not hold", None: ""}[figure.holds]
