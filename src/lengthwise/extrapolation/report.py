"""What `lengthwise extrapolate` reports: the page, and the same as plain values."""

from __future__ import annotations

import math
from typing import Any

from lengthwise.extrapolation.columns import BITS, measures, recall_measure, rows, summary_columns, usable
from lengthwise.extrapolation.plots import panels
from lengthwise.extrapolation.recommendation import recommend
from lengthwise.extrapolation.scoring import within
from lengthwise.extrapolation.series import looks, series_of
from lengthwise.reports.numbers import show_count, show_length
from lengthwise.reports.records import Results
from lengthwise.reports.report import Report
from lengthwise.reports.takeaways import trained_length


def extrapolation_report(results: Results, notice: str = "") -> Report:
    """Everything that was measured. `notice` says what is missing, where something is."""
    lengths, trained = results.lengths(BITS.key), trained_length(results)
    times = round(lengths[-1] / trained) if lengths and trained else 1
    return Report(
        results,
        title=f"How far beyond {show_length(trained or 0)} tokens?",
        lead=lead(results, times),
        advice=recommend(results),
        columns=summary_columns(results),
        rows=rows(results),
        panels=panels(results),
        looks=looks(list(results.candidates)),
        measures=measures(results),
        notice=notice,
        sorted_by=max(len(lengths) - 1, 0),
    )


def lead(results: Results, times: int) -> str:
    """One line on what was measured."""
    settings = results.settings
    if settings is None:
        return ""
    options, data = settings.options, settings.data
    name, seeds = data.get("name", "data"), len(options.get("seeds", [0]))
    models = len({series_of(one).model for one in results.names})
    if options.get("checkpoints"):
        parts = [f"{models} trained models", f"measured on held-out text of {name}"]
    else:
        parts = [f"{models} models trained on {name} ({show_count(data.get('train_tokens', 0))} bytes)"]
        parts += [f"{seeds} seed{'s' if seeds > 1 else ''}"]
    parts += [f"context {show_length(options.get('length') or 0)}", f"up to {times} times that", settings.date[:10]]
    return " · ".join(parts)


def as_json(report: Report) -> dict[str, Any]:
    """The numbers of a report, its recommendation and its sentences as plain values."""
    results = report.results
    recall = recall_measure(results)
    series = {}
    for name in report.rows:
        one = series_of(name)
        series[name] = {
            "model": one.model,
            "scaling": one.scaling,
            "parameters": results.candidates[name].parameters,
            "bits_per_byte": curve(results, name, BITS.key),
            "bits_per_byte_by_position": {
                str(at): curve(results, name, within(at)) for at in results.lengths(BITS.key, name)
            },
            "usable_up_to": usable(results, name),
            **({"recall": curve(results, name, recall.key)} if recall else {}),
        }
    return {
        "title": report.title,
        "notice": report.notice,
        "trained_length": trained_length(results),
        "recall": recall.title if recall else None,
        "series": series,
        "advice": [{"for": a.purpose, "pick": a.pick, "reason": a.reason} for a in report.advice],
        "takeaways": {p.key: {v.button: v.takeaway for v in p.views} for p in report.panels},
        "skipped": [
            {"series": s.candidate, "measure": s.measure, "at": s.at, "reason": s.reason} for s in results.skipped
        ],
    }


def curve(results: Results, name: str, key: str) -> list[dict[str, float]]:
    """A measure of one series at each length, with its standard error."""
    found = ((at, results.value(name, key, at)) for at in results.lengths(key, name))
    return [
        {"at": at, "value": round(v.value, 5), "error": round(v.error, 5)}
        for at, v in found
        if v is not None and math.isfinite(v.value)
    ]
