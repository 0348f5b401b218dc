"""Which position to train with, and how to stretch it: computed from the measured numbers and their errors."""

from __future__ import annotations

from lengthwise.comparison.recommendation import with_error
from lengthwise.extrapolation.columns import BITS, GUESSED, NAMED, TOLERANCE, recall_measure, usable
from lengthwise.extrapolation.series import series_of
from lengthwise.reports.measures import NOISE, Column
from lengthwise.reports.numbers import show_bits, show_length, show_ratio
from lengthwise.reports.records import Advice, Results, Value
from lengthwise.reports.takeaways import listed, trained_length

FEW = 3
"""Names of those that can't be told apart from the best that a sentence has room for."""


def recommend(results: Results) -> list[Advice]:
    """The pick for long contexts, for the trained length, for a model that is trained already, and for recall."""
    lengths, trained = results.lengths(BITS.key), trained_length(results)
    if not lengths or not trained:
        return []
    found = [for_contexts(results, lengths[-1], trained)] if lengths[-1] > trained else []
    found += [within_training(results, trained)]
    if lengths[-1] > trained:
        found += [to_stretch(results, lengths[-1])]
    found += [for_recall(results, trained)]
    return [advice for advice in found if advice is not None]


def for_contexts(results: Results, longest: int, trained: int) -> Advice | None:
    """The fewest bits per byte at the longest context."""
    col = Column(BITS, longest, "")
    ranked = col.ranked(results)
    if not ranked:
        return None
    best = ranked[0]
    bits, change = col.value(results, best), results.change(best, BITS.key, trained, longest)
    reason = f"{show_bits(bits.value)} bits per byte with {show_length(longest)} tokens" if bits else ""
    reason += f", {show_ratio(longest / trained)} the trained length"
    if change is not None:
        more = "more" if change.value > 0 else "fewer"
        reason += f": {with_error(change)} {more} than with {show_length(trained)}"
    reason += f". {ahead(results, col)}"
    reach = usable(results, best)
    if reach is not None and reach < longest:
        reason += f" It stays within {TOLERANCE} of the trained length only up to {show_length(reach)}."
    return Advice(f"For contexts of {show_length(longest)}", best, reason)


def within_training(results: Results, trained: int) -> Advice | None:
    """The fewest bits per byte at the trained length, of the models as they were trained."""
    col = Column(BITS, trained, "")
    plain = [name for name in col.ranked(results) if series_of(name).scaling == "none"]
    if not plain:
        return None
    bits = col.value(results, plain[0])
    reason = f"{show_bits(bits.value)} bits per byte. {ahead(results, col, plain)}" if bits else ""
    return Advice(f"Within the trained {show_length(trained)}", plain[0], reason)


def ahead(results: Results, col: Column, ranked: list[str] | None = None) -> str:
    """By how much the first of a ranking is better than the next, or from which it can't be told apart."""
    ranked = col.ranked(results) if ranked is None else ranked
    same = [name for name in ranked[1:] if not col.differs(results, ranked[0], name)]
    if same:
        return f"{some(same)} can't be told apart from it."
    gap = results.difference(ranked[0], ranked[1], BITS.key, col.at) if len(ranked) > 1 else None
    return f"That is {with_error(gap)} fewer than {ranked[1]}, the next best." if gap else "Nothing else gets there."


def some(names: list[str]) -> str:
    """The first few of some names, and how many more there are."""
    return listed(names) if len(names) <= FEW + 1 else listed([*names[:FEW], f"{len(names) - FEW} more"])


def to_stretch(results: Results, longest: int) -> Advice | None:
    """The scaling that takes most off the bits per byte of its model at the longest context."""
    gains: dict[str, Value] = {}
    for name in results.names:
        series = series_of(name)
        gap = results.difference(name, series.model, BITS.key, longest)
        if series.scaling != "none" and gap is not None:
            gains[name] = gap
    if not gains:
        return None
    best = min(gains, key=lambda name: gains[name].value)
    gap, model = gains[best], series_of(best).model
    purpose = "To stretch a trained model"
    if gap.value >= -NOISE * gap.error:
        return Advice(purpose, model, f"No scaling clearly helps at {show_length(longest)} tokens; leave it as it is.")
    before, after = results.value(model, BITS.key, longest), results.value(best, BITS.key, longest)
    shown = f" ({show_bits(before.value)} to {show_bits(after.value)})" if before and after else ""
    at = f"at {show_length(longest)} tokens{shown}"
    return Advice(purpose, best, f"It takes {with_error(gap)} bits per byte off {model} {at}, without training.")


def for_recall(results: Results, trained: int) -> Advice | None:
    """The best recall at the greatest span at which any is clearly above chance."""
    measure = recall_measure(results)
    if measure is None:
        return None
    chance = GUESSED[measure.key]
    for span in reversed(results.lengths(measure.key)):
        col = Column(measure, span, "")
        best = col.ranked(results)[0]
        value = col.value(results, best)
        if value is not None and value.value - NOISE * value.error > chance:
            same = [name for name in col.leaders(results) if name != best]
            beyond = f", {show_ratio(span / trained)} the trained length" if span > trained else ""
            reason = (
                f"{measure.show(value.value)} {NAMED[measure.key]} from {show_length(span)} tokens back{beyond}; "
                f"{measure.show(chance)} is chance."
            )
            reason += f" {some(same)} can't be told apart from it." if same else ""
            return Advice("For recall from far back", best, reason)
    return None
