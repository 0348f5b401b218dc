"""Which candidate to pick for what, and why: computed from the measured numbers and their standard errors."""

from __future__ import annotations

from collections.abc import Sequence

from lengthwise.reports.measures import MEASURES, NOISE, Column, column
from lengthwise.reports.numbers import show_bits, show_bytes, show_length, show_ratio, show_seconds
from lengthwise.reports.records import Advice, Results, Value
from lengthwise.reports.takeaways import listed

ABOUT_AS_SMALL = 1.25
"""Up to this factor a state counts as being as small as the smallest, and quality decides."""

STEADY = 1.15
"""A time that grows by less than this factor over all lengths is said not to grow."""


def recommend(results: Results) -> list[Advice]:
    """The pick for quality, for memory and for long contexts, as far as was measured."""
    if not any(results.value(name, "bits_per_byte") for name in results.names):
        return []
    found = (for_quality(results), for_memory(results), for_long_contexts(results))
    return [advice for advice in found if advice is not None]


def with_error(gap: Value) -> str:
    """A difference in bits per byte, with its standard error, large enough to show that it isn't 0."""
    digits = 2 if max(abs(gap.value), gap.error) >= 0.02 else 3
    return f"{abs(gap.value):.{digits}f} ± {gap.error:.{digits}f}"


def for_quality(results: Results) -> Advice | None:
    """The fewest held-out bits per byte; among those that can't be told apart, the one that decodes fastest."""
    col = Column(MEASURES["bits_per_byte"], None, "")
    ranked, leaders = col.ranked(results), col.leaders(results)
    best = ranked[0]
    bits = f"{show_bits(results.value(best, 'bits_per_byte').value)} bits per byte on held-out text"  # type: ignore[union-attr]
    if len(ranked) == 1:
        return Advice("For quality", best, f"{bits}; there is nothing to compare it with.")
    if len(leaders) == 1:
        gap = results.difference(best, ranked[1], "bits_per_byte")
        worst = results.difference(best, ranked[-1], "bits_per_byte")
        reason = f"{bits}: {with_error(gap)} fewer than {ranked[1]}, the next best" if gap else bits
        if worst and len(ranked) > 2:
            reason += f", and {with_error(worst)} fewer than {ranked[-1]}, the last"
        return Advice("For quality", best, reason + ".")
    others = [name for name in leaders if name != best]
    gap = results.difference(best, others[0], "bits_per_byte")
    reason = f"{bits}. {listed(others)} can't be told apart from it"
    reason += f" (the nearest is {with_error(gap)} away)" if gap else ""
    return Advice("For quality", best, f"{reason}: more --budget or --seeds would tell.{_cheaper(results, leaders)}")


def _cheaper(results: Results, leaders: Sequence[str]) -> str:
    """Which of equally good candidates costs least to decode with, where that differs."""
    col = column(results, "decode_seconds", "{}")
    if col is None:
        return ""
    ranked = [name for name in col.ranked(results) if name in leaders]
    if len(ranked) < 2 or not col.differs(results, ranked[0], ranked[-1]):
        return ""
    shown = show_seconds(col.value(results, ranked[0]).value)  # type: ignore[union-attr]
    return f" Of these, {ranked[0]} decodes fastest, {shown} a token at {col.heading} tokens."


def price(results: Results, name: str) -> str:
    """What a candidate gives up in quality against the best one."""
    best = Column(MEASURES["bits_per_byte"], None, "").ranked(results)[0]
    gap = results.difference(name, best, "bits_per_byte")
    if name == best or gap is None:
        return f"{name} also has the best quality." if name == best else ""
    if abs(gap.value) <= NOISE * gap.error:
        return f"The quality of {name} can't be told apart from the best, {best}."
    return f"{name} gives up {with_error(gap)} bits per byte against {best}."


def for_memory(results: Results) -> Advice | None:
    """The best quality among the smallest states at the longest context that all reached."""
    col = column(results, "state_bytes", "{}")
    if col is None:
        return None
    ranked = col.ranked(results)
    quality = Column(MEASURES["bits_per_byte"], None, "").ranked(results)
    values = {name: v.value for name in ranked if (v := col.value(results, name)) is not None}
    small = [name for name in ranked if values[name] <= ABOUT_AS_SMALL * values[ranked[0]]]
    pick = min(small, key=lambda n: quality.index(n) if n in quality else len(quality))
    largest = ranked[-1]
    reason = f"{show_bytes(values[pick])} of state after {col.heading} tokens"
    if pick != ranked[0]:
        reason += f", about as little as {ranked[0]} ({show_bytes(values[ranked[0]])}) with better quality"
    if largest != pick:
        factor = show_ratio(values[largest] / max(values[pick], 1.0))
        reason += f"; {largest} keeps {show_bytes(values[largest])}, {factor} as much"
    train = column(results, "train_peak_bytes", "{}")
    if train is not None and (leanest := train.ranked(results)):
        ours, least = train.value(results, pick), train.value(results, leanest[0])
        if ours and least and leanest[0] not in (pick,) and train.differs(results, pick, leanest[0]):
            reason += (
                f". In training {leanest[0]} needs least: {show_bytes(least.value)} for a step of {train.heading} "
                f"tokens, against {show_bytes(ours.value)}"
            )
    return Advice("For memory", pick, f"{reason}. {price(results, pick)}".strip())


def for_long_contexts(results: Results) -> Advice | None:
    """The best at the longest context that was scored, among those that don't break down beyond the trained length.

    Of those that can't be told apart, the one that recalls most from the greatest distance; where that is noise too,
    the one that decodes fastest at the longest context.
    """
    col = column(results, "bits_at_context", "{}")
    if col is None or col.at is None:
        return None
    steady = [name for name in col.ranked(results) if not breaks_down(results, name, col.at)]
    ranked = steady or col.ranked(results)
    equal = [name for name in ranked if not col.differs(results, ranked[0], name)]
    pick, why = _tie(results, equal)
    bits = col.value(results, pick)
    reason = f"{show_bits(bits.value)} bits per byte with {col.heading} tokens of context" if bits else ""
    trained = int(results.settings.options.get("length", 0)) if results.settings else 0
    if trained and col.at > trained:
        reason += f", {show_ratio(col.at / trained)} the trained length"
    others = [name for name in equal if name != pick]
    if others:
        reason += f", not told apart from {listed(others)}; {why}" if why else f", not told apart from {listed(others)}"
    elif len(ranked) > 1:
        gap = results.difference(pick, ranked[1], "bits_at_context", col.at)
        reason += f", {with_error(gap)} fewer than {ranked[1]}" if gap else ""
    broken = [name for name in results.names if breaks_down(results, name, col.at)]
    text = reason + "."
    if broken:
        text += f" {listed(broken)} got worse beyond the trained length."
    return Advice("For long contexts", pick, f"{text}{_cost_far_out(results, pick)}")


def breaks_down(results: Results, name: str, longest: int) -> bool:
    """Whether a candidate predicts the same tokens worse with the longest context than with the trained length."""
    trained = int(results.settings.options.get("length", 0)) if results.settings else 0
    if not trained or longest <= trained:
        return False
    gap = results.change(name, "bits_at_context", trained, longest)
    return gap is not None and gap.value > NOISE * gap.error and gap.value > 0.01


def _tie(results: Results, equal: list[str]) -> tuple[str, str]:
    """Of candidates of equal quality, which to take for long contexts, and why."""
    if len(equal) == 1:
        return equal[0], ""
    col = column(results, "recall", "{}")
    if col is not None:
        ranked = [name for name in col.ranked(results) if name in equal]
        if len(ranked) > 1 and col.differs(results, ranked[0], ranked[1]):
            saved = col.value(results, ranked[0])
            shown = f"{saved.value:.2f}" if saved else ""
            return ranked[0], f"it recalls most from {col.heading} tokens back ({shown} bits per byte saved)"
    col = column(results, "decode_seconds", "{}")
    if col is not None:
        ranked = [name for name in col.ranked(results) if name in equal]
        if ranked:
            return ranked[0], f"it decodes fastest of these at {col.heading} tokens"
    return equal[0], ""


def _cost_far_out(results: Results, pick: str) -> str:
    """How the pick's cost of a token compares with that of the slowest, at the longest context that both reached."""
    lengths = results.lengths("decode_seconds", pick)
    if len(lengths) < 2:
        return ""
    first, last = (results.value(pick, "decode_seconds", at) for at in (lengths[0], lengths[-1]))
    state = results.value(pick, "state_bytes", lengths[-1])
    if first is None or last is None:
        return ""
    factor = last.value / first.value
    growth = f"{show_ratio(factor)} what it costs" if factor > STEADY else "no more than"
    text = (
        f" A decoded token costs {show_seconds(last.value)} at {show_length(lengths[-1])} tokens, {growth} at "
        f"{show_length(lengths[0])}"
    )
    return text + (f", with {show_bytes(state.value)} of state." if state else ".")
