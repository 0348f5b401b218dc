"""What a study measures, and the columns of its table."""

from __future__ import annotations

from dataclasses import dataclass

from lengthwise.extrapolation.keys import CHANCE
from lengthwise.extrapolation.scoring import within
from lengthwise.reports import measures as common
from lengthwise.reports.measures import NOISE, Column, Measure
from lengthwise.reports.numbers import show_bits, show_length
from lengthwise.reports.records import Measurement, Results, Value, mean_and_error, paired_difference
from lengthwise.reports.takeaways import trained_length

TOLERANCE = 0.1
"""A context is usable where bits per byte are at most so many more than at the trained length."""


def show_percent(value: float) -> str:
    """A share, in percent."""
    return f"{100 * value:.0f} %"


BITS = Measure("bits_at_length", "Bits per byte at the end of a window", "bits per byte", show_bits, paired=True)
KEYS = Measure("keys", "Recall of a key", "share of keys named", show_percent, lower_is_better=False, paired=True)
COPIES = Measure("copies", "Recall of a passage", "bits per byte saved", show_bits, lower_is_better=False, paired=True)
CHANGE = Measure("change", "Change in bits per byte", "bits per byte", show_bits, paired=True)
USABLE = Measure("usable", "Longest usable context", "tokens", show_length, lower_is_better=False)
NAMED = {KEYS.key: "of keys named", COPIES.key: "bits per byte saved"}
"""What follows a number of recall in a sentence."""

GUESSED = {KEYS.key: CHANCE, COPIES.key: 0.0}
"""What recall is without any memory."""


def measures(results: Results) -> dict[str, Measure]:
    """Every measure of some results by its name in the records."""
    own = {m.key: m for m in (BITS, KEYS, COPIES, CHANGE, USABLE)}
    inside = {within(at): Measure(within(at), "Bits per byte against position", "bits per byte", show_bits, paired=True)
              for at in results.lengths(BITS.key)}  # fmt: skip
    return {**common.MEASURES, **own, **inside}


def recall_measure(results: Results) -> Measure | None:
    """What stands for recall in some results."""
    return next((m for m in (KEYS, COPIES) if results.lengths(m.key)), None)


@dataclass(frozen=True)
class Changed(Column):
    """How much a measure changes between two lengths, pair by pair over the same bytes."""

    begin: int = 0
    end: int = 0

    def value(self, results: Results, candidate: str) -> Value | None:
        """The mean change with its standard error."""
        return results.change(candidate, BITS.key, self.begin, self.end)

    def differs(self, results: Results, first: str, second: str) -> bool:
        """Whether two candidates change by amounts that can be told apart."""
        gap = paired_difference(self._changes(results, first), self._changes(results, second))
        return first != second and gap is not None and abs(gap.value) > NOISE * gap.error

    def _changes(self, results: Results, name: str) -> dict[int, Measurement]:
        before, after = (results.seeds(name, BITS.key, at) for at in (self.begin, self.end))
        found = {}
        for seed in before.keys() & after.keys():
            blocks = tuple(b - a for a, b in zip(before[seed].blocks, after[seed].blocks, strict=True))
            mean, error = mean_and_error(blocks)
            found[seed] = Measurement(name, seed, CHANGE.key, mean, None, error, blocks)
        return found


class Usable(Column):
    """The longest usable context."""

    def value(self, results: Results, candidate: str) -> Value | None:
        """The longest window up to which no window is worse by more than `TOLERANCE`."""
        longest = usable(results, candidate)
        return None if longest is None else Value(float(longest))


def usable(results: Results, name: str) -> int | None:
    """The longest of the measured windows up to which bits per byte stay within `TOLERANCE` of the trained length."""
    trained, found = trained_length(results) or 0, None
    for at in results.lengths(BITS.key, name):
        change = results.change(name, BITS.key, trained, at)
        if change is None or (at > trained and change.value > TOLERANCE):
            break
        found = at
    return found


def summary_columns(results: Results) -> list[Column]:
    """Bits per byte at each length, their change up to the longest, the longest usable context, and recall."""
    lengths, trained = results.lengths(BITS.key), trained_length(results) or 0
    columns = [Column(BITS, at, f"bits at {show_length(at)}", errors=False) for at in lengths]
    if lengths and lengths[-1] > trained:
        columns.append(Changed(CHANGE, None, f"change to {show_length(lengths[-1])}", begin=trained, end=lengths[-1]))
        columns.append(Usable(USABLE, None, "usable up to"))
    recall = recall_measure(results)
    if recall is not None:
        spans = results.lengths(recall.key)
        columns += [Column(recall, at, f"recall at {show_length(at)}") for at in spans if at in (trained, spans[-1])]
    return columns


def rows(results: Results) -> list[str]:
    """The series, the fewest bits per byte at the longest window first; those that don't reach it come last."""
    lengths = results.lengths(BITS.key)

    def key(name: str) -> tuple[int, float]:
        known = results.lengths(BITS.key, name)
        value = results.value(name, BITS.key, known[-1]) if known else None
        return -(lengths.index(known[-1]) if known else -1), value.value if value else 0.0

    return sorted(results.names, key=key)
