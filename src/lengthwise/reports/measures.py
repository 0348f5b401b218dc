"""What a comparison measures: how each measure is called, read and judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lengthwise.reports.numbers import show_bits, show_bytes, show_count, show_length, show_seconds
from lengthwise.reports.records import Results, Value


@dataclass(frozen=True)
class Measure:
    """One measure. `unit` names the axis, `show` writes a value, `paired` has blocks to compare pair by pair."""

    key: str
    title: str
    unit: str
    show: Callable[[float], str]
    lower_is_better: bool = True
    paired: bool = False


MEASURES = {
    m.key: m
    for m in (
        Measure("bits_per_byte", "Held-out bits per byte", "bits per byte", show_bits, paired=True),
        Measure("bits_at_context", "Bits per byte against context", "bits per byte", show_bits, paired=True),
        Measure("recall", "Recall", "bits per byte saved", show_bits, lower_is_better=False, paired=True),
        Measure("train_rate", "Training speed", "tokens per second", show_count, lower_is_better=False),
        Measure("train_peak_bytes", "Memory of a training step", "bytes", show_bytes),
        Measure("prefill_peak_bytes", "Memory of reading a prompt", "bytes", show_bytes),
        Measure("prefill_seconds", "Time to read a prompt", "seconds", show_seconds),
        Measure("decode_seconds", "Time per decoded token", "seconds", show_seconds),
        Measure("state_bytes", "State", "bytes", show_bytes),
    )
}
"""The measures by the names that records use."""

NOISE = 2.0
"""Two candidates differ when the difference of their measurements is more than this many standard errors of it."""

TIMING_NOISE = 0.05
"""Times and sizes that differ by less than this share count as equal."""


@dataclass(frozen=True)
class Column:
    """A measure at one length (or none): a column of the summary. `errors`: standard errors have room in it."""

    measure: Measure
    at: int | None
    heading: str
    errors: bool = True

    def value(self, results: Results, candidate: str) -> Value | None:
        """A candidate's value in this column."""
        return results.value(candidate, self.measure.key, self.at)

    def ranked(self, results: Results) -> list[str]:
        """The candidates that have a value, best first."""
        known = {name: v.value for name in results.names if (v := self.value(results, name)) is not None}
        return sorted(known, key=lambda name: known[name], reverse=not self.measure.lower_is_better)

    def leaders(self, results: Results) -> list[str]:
        """The best candidate and those that can't be told apart from it, best first."""
        ranked = self.ranked(results)
        return [name for name in ranked if not self.differs(results, ranked[0], name)]

    def differs(self, results: Results, first: str, second: str) -> bool:
        """Whether two candidates differ by more than the noise of their measurements."""
        if first == second:
            return False
        if self.measure.paired:
            gap = results.difference(first, second, self.measure.key, self.at)
            return gap is not None and abs(gap.value) > NOISE * gap.error
        ours, theirs = self.value(results, first), self.value(results, second)
        if ours is None or theirs is None:
            return True
        return abs(ours.value - theirs.value) > TIMING_NOISE * max(abs(ours.value), abs(theirs.value))


def column(results: Results, key: str, heading: str, at: int | None = None) -> Column | None:
    """A column at the greatest length that all candidates share (or at `at`), or None where nobody was measured."""
    measure = MEASURES[key]
    if not any(m.measure == key for m in results.measurements):
        return None
    if any(m.measure == key and m.at is not None for m in results.measurements):
        at = results.common_length(key) if at is None else at
        if at is None:
            return None
        return Column(measure, at, heading.format(show_length(at)))
    return Column(measure, None, heading)


def summary_columns(results: Results) -> list[Column]:
    """The columns of the summary: quality, recall, training, memory, decoding."""
    wanted = (
        column(results, "bits_per_byte", "bits per byte"),
        column(results, "recall", "recall at {}", recall_distance(results)),
        column(results, "train_rate", "training tokens/s"),
        column(results, "train_peak_bytes", "training memory at {}"),
        column(results, "decode_seconds", "per decoded token at {}"),
        column(results, "state_bytes", "state at {}"),
    )
    return [c for c in wanted if c is not None]


def by_quality(results: Results) -> list[str]:
    """The candidates, best held-out bits per byte first; those without come last."""

    def key(name: str) -> tuple[bool, float]:
        value = results.value(name, "bits_per_byte")
        return value is None, 0.0 if value is None else value.value

    return sorted(results.names, key=key)


def recall_distance(results: Results) -> int | None:
    """The distance of the summary's recall: the greatest within the context that was trained."""
    trained = int(results.settings.options.get("length", 0)) if results.settings else 0
    shared = [set(results.lengths("recall", name)) for name in results.names]
    within = [d for d in set.intersection(*shared) if d <= trained] if shared else []
    return max(within, default=None)


def growth_factor(results: Results, key: str, candidate: str) -> tuple[int, int, float] | None:
    """Between which lengths, and by which factor, a measure grew for one candidate."""
    lengths = results.lengths(key, candidate)
    if len(lengths) < 2:
        return None
    first, last = results.value(candidate, key, lengths[0]), results.value(candidate, key, lengths[-1])
    if first is None or last is None or first.value <= 0 or not math.isfinite(last.value):
        return None
    return lengths[0], lengths[-1], last.value / first.value


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """The names whose point (cost, loss) no other beats in both, in the order of cost."""
    front: list[str] = []
    best = math.inf
    for name, (_, loss) in sorted(points.items(), key=lambda item: item[1]):
        if loss < best:
            front.append(name)
            best = loss
    return front
