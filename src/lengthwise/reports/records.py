"""What a comparison writes down: one record a line, each flushed when it is measured, and the collection of them.

A file of results can be cut anywhere: what was written before is valid, and a half-written last line is ignored.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from lengthwise.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Everything needed to run a comparison again, and where it ran.

    options: the options as given. command: a command line that repeats the run. data, recipe, machine: what was read,
    how it was trained and on what, by name.
    """

    date: str
    command: str
    options: dict[str, Any]
    data: dict[str, Any]
    recipe: dict[str, Any]
    machine: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """One model of the comparison: its name, its expression, the width solved for it and its parameters."""

    name: str
    layers: str
    dim: int
    parameters: int
    growth: str = "linear"


@dataclass(frozen=True)
class TrainingPoint:
    """The training loss, in bits per byte, averaged since the point before, after `seconds` of training."""

    candidate: str
    seed: int
    seconds: float
    tokens: int
    bits: float


@dataclass(frozen=True)
class Measurement:
    """One measured number. `at` is the length it belongs to; `blocks` are the values of which `value` is the mean, on
    the same stretches of text for every candidate, so that two candidates can be compared pair by pair."""

    candidate: str
    seed: int
    measure: str
    value: float
    at: int | None = None
    error: float | None = None
    blocks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A measurement that was left out, and why."""

    candidate: str
    measure: str
    at: int | None
    reason: str


@dataclass(frozen=True)
class Finished:
    """A candidate that has been trained with one seed and measured (`stage` says what of)."""

    candidate: str
    seed: int
    stage: str


@dataclass(frozen=True)
class Advice:
    """One line of the recommendation: what for, which candidate, and the reason with its numbers."""

    purpose: str
    pick: str
    reason: str


Record = Settings | Candidate | TrainingPoint | Measurement | Skipped | Finished
KINDS: dict[str, type[Any]] = {
    "settings": Settings,
    "candidate": Candidate,
    "training": TrainingPoint,
    "measurement": Measurement,
    "skipped": Skipped,
    "finished": Finished,
}


def to_json(record: Record) -> str:
    """A record as one line of JSON. Numbers that aren't finite become null."""
    kind = next(name for name, cls in KINDS.items() if isinstance(record, cls))
    fields = {name: value for name, value in dataclasses.asdict(record).items() if name != "blocks" or value}
    return json.dumps({"kind": kind, **_finite(fields)}, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_json(line: str) -> Record | None:
    """The record of one line; None for one that is cut short or of a kind that isn't known."""
    try:
        fields = json.loads(line)
        cls = KINDS[fields.pop("kind")]
        if cls is Measurement:
            fields["blocks"] = tuple(fields.get("blocks", ()))
            fields["value"] = math.nan if fields.get("value") is None else fields["value"]
        return cls(**fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Value:
    """The median over seeds, and its standard error: over the stretches of text, and over the seeds where there are
    several."""

    value: float
    error: float = 0.0


@dataclass
class Results:
    """All records of a comparison, with the questions that a report asks of them."""

    settings: Settings | None = None
    candidates: dict[str, Candidate] = field(default_factory=dict)
    training: list[TrainingPoint] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    finished: set[Finished] = field(default_factory=set)

    def add(self, record: Record) -> None:
        """Take a record in. Settings and candidates replace what they had before."""
        match record:
            case Settings():
                self.settings = record
            case Candidate():
                self.candidates[record.name] = record
            case TrainingPoint():
                self.training.append(record)
            case Measurement():
                self.measurements.append(record)
            case Skipped():
                self.skipped.append(record)
            case Finished():
                self.finished.add(record)

    @property
    def names(self) -> list[str]:
        """The candidates that have been measured at all, in their order."""
        measured = {m.candidate for m in self.measurements}
        return [name for name in self.candidates if name in measured]

    def seeds(self, candidate: str, measure: str, at: int | None = None) -> dict[int, Measurement]:
        """The measurement of each seed; the latest one where it was measured twice."""
        found = (m for m in self.measurements if (m.candidate, m.measure, m.at) == (candidate, measure, at))
        return {m.seed: m for m in found}

    def value(self, candidate: str, measure: str, at: int | None = None) -> Value | None:
        """The median over seeds with its standard error, or None where it wasn't measured."""
        found = self.seeds(candidate, measure, at)
        values = [m.value for m in found.values() if math.isfinite(m.value)]
        if not values:
            return None
        within = statistics.fmean((m.error or 0.0) ** 2 for m in found.values())
        return Value(statistics.median(values), math.sqrt(within + _squared_error(values)))

    def lengths(self, measure: str, candidate: str | None = None) -> list[int]:
        """The lengths at which a measure is known, for one candidate or for any."""
        wanted = (m for m in self.measurements if m.measure == measure and candidate in (None, m.candidate))
        return sorted({m.at for m in wanted if m.at is not None})

    def common_length(self, measure: str) -> int | None:
        """The greatest length at which a measure is known for every candidate."""
        sets = [set(self.lengths(measure, name)) for name in self.names]
        return max(set.intersection(*sets), default=None) if sets else None

    def difference(self, first: str, second: str, measure: str, at: int | None = None) -> Value | None:
        """`first` minus `second` with the standard error of the difference, pair by pair over the same text.

        Pairing takes out what is hard or easy in a text for both. The spread of several seeds counts too.
        """
        return paired_difference(self.seeds(first, measure, at), self.seeds(second, measure, at))

    def change(self, candidate: str, measure: str, begin: int, end: int) -> Value | None:
        """How much a candidate's measure changes from one length to another, pair by pair over the same text."""
        return paired_difference(self.seeds(candidate, measure, end), self.seeds(candidate, measure, begin))


def paired_difference(ours: dict[int, Measurement], theirs: dict[int, Measurement]) -> Value | None:
    """The mean difference over the seeds and blocks that both have, with its standard error. None without such."""
    shared = sorted(set(ours) & set(theirs))
    if not shared:
        return None
    count = min(len(m.blocks) for group in (ours, theirs) for seed, m in group.items() if seed in shared)
    if count < 2:
        gaps = [ours[seed].value - theirs[seed].value for seed in shared]
        errors = [(m.error or 0.0) ** 2 for group in (ours, theirs) for m in group.values()]
        return Value(statistics.fmean(gaps), math.sqrt(2 * statistics.fmean(errors)))
    gaps_of = {seed: [ours[seed].blocks[i] - theirs[seed].blocks[i] for i in range(count)] for seed in shared}
    per_block = [statistics.fmean(gaps[i] for gaps in gaps_of.values()) for i in range(count)]
    per_seed = [statistics.fmean(gaps) for gaps in gaps_of.values()]
    return Value(statistics.fmean(per_block), math.sqrt(_squared_error(per_block) + _squared_error(per_seed)))


def _squared_error(values: Sequence[float]) -> float:
    """The squared standard error of a mean; 0 for a single value, of which nothing is known."""
    return statistics.variance(values) / len(values) if len(values) > 1 else 0.0


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of values and its standard error."""
    return statistics.fmean(values), math.sqrt(_squared_error(values))


def load(path: Path) -> Results:
    """The results in a file of records. Raises InputError where there are none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"the results in {path} can't be read ({error.strerror}); give the folder of a run") from None
    return collect(record for line in lines if (record := from_json(line)) is not None)


def collect(records: Iterable[Record]) -> Results:
    """Records as results."""
    results = Results()
    for record in records:
        results.add(record)
    return results


class RecordFile:
    """Results that are written to a file as they come, one flushed line each."""

    def __init__(self, path: Path, results: Results | None = None):
        self.path = path
        self.results = results or Results()
        self._file: TextIO | None = None

    def __enter__(self) -> RecordFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut = self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size > 0
            self._file = self.path.open("a", encoding="utf-8")
            if cut:
                self._file.write("\n")
        except OSError as error:
            raise InputError(
                f"results can't be written to {self.path} ({error.strerror}); give another folder"
            ) from None
        return self

    def __exit__(self, *args: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, record: Record) -> None:
        """Keep a record and have it on the disk."""
        if self._file is None:
            raise RuntimeError("a RecordFile is written to inside its `with` block")
        self.results.add(record)
        try:
            self._file.write(to_json(record) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(
                f"{self.path} can't be written ({error.strerror}); make room and go on with --resume"
            ) from None
