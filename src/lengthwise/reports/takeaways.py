"""What a plot shows, in a sentence computed from the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

from lengthwise.reports.measures import MEASURES, NOISE, growth_factor
from lengthwise.reports.numbers import show_length, show_ratio
from lengthwise.reports.records import Results

FAINT_RECALL = 0.05
"""Recall below this many bits per byte is as good as none."""


def trained_length(results: Results) -> int | None:
    """The context length in training."""
    length = results.settings.options.get("length") if results.settings else None
    return int(length) if length else None


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def front_sentence(results: Results, points: dict[str, tuple[float, float]], front: list[str], what: str) -> str:
    """Which candidates are worth choosing between, and what the best costs more than the cheapest."""
    if len(front) == 1:
        return f"{front[0]} is best in both: quality and {what}."
    cheap, good = front[0], front[-1]
    factor = points[good][0] / points[cheap][0]
    gap = results.difference(cheap, good, "bits_per_byte")
    error = f" ± {gap.error:.2f}" if gap else ""
    loss = points[cheap][1] - points[good][1]
    return (
        f"Worth choosing between: {listed(front)}. {good} costs {show_ratio(factor)} as much as {cheap} and needs "
        f"{loss:.2f}{error} fewer bits per byte."
    )


def context_sentence(results: Results) -> str:
    """Who gains from context within the trained length, and who gets better or worse beyond it."""
    key, trained = "bits_at_context", trained_length(results)
    helped = _most_helped(results, trained)
    worse: list[str] = []
    better: list[str] = []
    for name in results.names:
        beyond = [at for at in results.lengths(key, name) if trained and at > trained]
        change = results.change(name, key, trained, beyond[-1]) if trained and beyond else None
        if change is not None and abs(change.value) > NOISE * change.error:
            (worse if change.value > 0 else better).append(f"{name} ({change.value:+.2f})")
    if not worse and not better:
        return f"{helped} Beyond the trained length nobody gets clearly better or worse.".strip()
    parts = []
    if better:
        parts.append(f"still better beyond the trained length: {listed(better)}")
    if worse:
        parts.append(f"worse there: {listed(worse)}" if better else f"worse beyond the trained length: {listed(worse)}")
    text = "; ".join(parts) + " bits per byte."
    return f"{helped} {text[0].upper()}{text[1:]}".strip()


def _most_helped(results: Results, trained: int | None) -> str:
    shortest = min(results.lengths("bits_at_context"), default=0)
    gains = {}
    for name in results.names:
        change = results.change(name, "bits_at_context", shortest, trained) if trained else None
        if change is not None and change.value < -NOISE * change.error:
            gains[name] = change.value
    if not gains:
        return f"More than {show_length(shortest)} tokens of context help nobody clearly yet." if trained else ""
    most = min(gains, key=lambda n: gains[n])
    return f"Up to the trained length {most} gains most from context ({gains[most]:+.2f})."


def recall_sentence(results: Results) -> str:
    """Who recalls most from the shortest distance, and from the greatest that all share."""
    distances = results.lengths("recall")
    best: dict[int, tuple[str, float]] = {}
    for at in {distances[0], results.common_length("recall") or distances[0]}:
        known = {n: v.value for n in results.names if (v := results.value(n, "recall", at)) is not None}
        name = max(known, key=lambda n: known[n])
        best[at] = name, known[name]
    if max(saved for _, saved in best.values()) < FAINT_RECALL:
        return f"Nobody recalls yet: fewer than {FAINT_RECALL} bits per byte saved. That comes with longer training."
    parts = [f"{show_length(at)} tokens back {name} saves {saved:.2f}" for at, (name, saved) in sorted(best.items())]
    return f"{'; '.join(parts)} bits per byte. 0 is no memory of the passage."


def growth_sentence(results: Results, key: str, what: str) -> str:
    """For whom a measure grows most with the length, and for whom least."""
    grown = {name: g for name in results.names if (g := growth_factor(results, key, name)) is not None}
    if not grown:
        return ""
    last = min(g[1] for g in grown.values())
    rates = {}
    for name, (first, _, _) in grown.items():
        begin, end = results.value(name, key, first), results.value(name, key, last)
        if begin is not None and end is not None and begin.value > 0:
            rates[name] = (first, end.value / begin.value)
    if not rates:
        return ""
    most, least = max(rates, key=lambda n: rates[n][1]), min(rates, key=lambda n: rates[n][1])
    span = f"From {show_length(rates[most][0])} to {show_length(last)} tokens {what}"
    if most == least:
        return f"{span} grows {show_ratio(rates[most][1])}."
    return f"{span} grows {show_ratio(rates[most][1])} for {most} and {show_ratio(rates[least][1])} for {least}."


def training_sentence(results: Results) -> str:
    """Who reads fastest and who slowest."""
    rates = {n: v.value for n in results.names if (v := results.value(n, "train_rate")) is not None}
    if len(rates) < 2:
        return ""
    fast, slow = max(rates, key=lambda n: rates[n]), min(rates, key=lambda n: rates[n])
    show = MEASURES["train_rate"].show
    return f"{fast} read {show(rates[fast])} tokens a second, {slow} {show(rates[slow])}."
