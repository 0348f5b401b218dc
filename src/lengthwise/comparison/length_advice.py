"""Which length to train at, and why: for each model overall and by each measure."""

from __future__ import annotations

from lengthwise.comparison.length_study import model_and_length, trained_at
from lengthwise.reports.measures import Measure
from lengthwise.reports.numbers import show_bits, show_ratio, show_seconds
from lengthwise.reports.records import Advice, Results
from lengthwise.training.lengths import Arrangement, LengthRow, LengthTable, Recommended, recommend

LENGTH_MEASURES = {
    m.key: m
    for m in (
        Measure("bits_long", "Bits per byte of long text", "bits per byte", show_bits, paired=True),
        Measure("bits_short", "Bits per byte of short text", "bits per byte", show_bits, paired=True),
        Measure("context_gain", "Gain from context", "bits per byte saved", show_bits, False, paired=True),
        Measure("pairs", "Minimal pairs", "share told apart", show_bits, False, paired=True),
        Measure("repeats", "Words that come again", "bits per byte", show_bits, paired=True),
        Measure("bits_at_context", "Bits per byte against context", "bits per byte", show_bits, paired=True),
        Measure("run_seconds", "Time of a run", "seconds", show_seconds),
        Measure("of_longest", "Time of a run over the longest length's", "times", show_ratio),
    )
}
"""What a study of lengths measures, by the names that records use."""

JUDGED = {
    "bits_long": "Long text",
    "bits_short": "Short text",
    "pairs": "What is local",
    "repeats": "What is far back",
}
"""The measures that decide, and what each stands for. The gain from context isn't one: a model that is bad without
context gains most from it."""


def models(results: Results) -> list[str]:
    """The models of which any length was measured, in their order."""
    return list(dict.fromkeys(model_and_length(key)[0] for key in results.names))


def lengths_of(results: Results, model: str) -> list[int]:
    """The lengths at which a model was measured."""
    return sorted(n for key in results.names for name, n in [model_and_length(key)] if name == model)


def length_table(results: Results, model: str) -> LengthTable:
    """What was measured of one model, medians over the seeds, at the lengths at which everything was measured."""
    measured = {m.measure for m in results.measurements}
    judged = [key for key in JUDGED if key in measured]
    rows = []
    for length in lengths_of(results, model):
        key = trained_at(model, length)
        found = {measure: results.value(key, measure) for measure in (*judged, "run_seconds", "updates", "windows")}
        values = {measure: value.value for measure, value in found.items() if value is not None}
        if len(values) == len(found):
            at = Arrangement(length, round(values.pop("windows")), round(values.pop("updates")))
            rows.append(LengthRow(at, values.pop("run_seconds"), values))
    return LengthTable(tuple(rows), frozenset(key for key in judged if LENGTH_MEASURES[key].lower_is_better))


def recommendations(results: Results, tolerance: float) -> dict[str, Recommended]:
    """The lengths for each model that was measured at two lengths or more."""
    tables = {model: length_table(results, model) for model in models(results)}
    return {model: recommend(table, tolerance) for model, table in tables.items() if len(table.rows) > 1}


def length_advice(results: Results, tolerance: float) -> list[Advice]:
    """The recommendation in words: overall for every model, then by measure."""
    found = recommendations(results, tolerance)
    tables = {model: length_table(results, model) for model in found}
    overall = [_overall(model, tables[model], found[model], tolerance) for model in found]
    by_task = [
        Advice(JUDGED[task], trained_at(model, length), _reason(results, model, task, length, tables[model]))
        for model in found
        for task, length in found[model].by_task.items()
    ]
    return overall + by_task


def _overall(model: str, table: LengthTable, found: Recommended, tolerance: float) -> Advice:
    row, longest = table.row(found.overall), table.rows[-1].length
    if found.agrees:
        reason = f"the shortest length within {tolerance:g} of the best by every measure"
    else:
        reason = f"no length is within {tolerance:g} of the best by every measure; this one comes nearest"
    if row.length != longest:
        reason += f". A run takes {100 * table.relative_seconds(row):.0f} % of the time of one at {longest}"
    return Advice("Overall", trained_at(model, found.overall), f"{reason[0].upper()}{reason[1:]}.")


def _reason(results: Results, model: str, task: str, length: int, table: LengthTable) -> str:
    best = table.best(task).length
    score = table.row(length).scores[task]
    shown = f"{score:.3f} of minimal pairs told apart" if task == "pairs" else f"{show_bits(score)} bits per byte"
    gap = results.difference(trained_at(model, best), trained_at(model, length), task)
    if length == best or gap is None:
        return f"{shown}, the best."
    return f"{shown}; {best} is best, by {abs(gap.value):.3f} ± {gap.error:.3f}."
