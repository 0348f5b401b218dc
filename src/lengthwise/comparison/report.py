"""What `lengthwise compare` reports of its results."""

from __future__ import annotations

from collections.abc import Sequence

from lengthwise.reports.measures import MEASURES, by_quality, summary_columns
from lengthwise.reports.numbers import show_count, show_length
from lengthwise.reports.plots import panels
from lengthwise.reports.records import Advice, Results, Settings
from lengthwise.reports.report import Report
from lengthwise.reports.style import styles


def comparison_report(results: Results, advice: Sequence[Advice], notice: str = "") -> Report:
    """Everything that was measured, best quality first. `notice` says what is missing, where something is."""
    return Report(
        results,
        title=f"Which of {len(results.names)} long-sequence models?",
        lead=lead(results.settings),
        advice=advice,
        columns=summary_columns(results),
        rows=by_quality(results),
        panels=panels(results),
        looks=styles(list(results.candidates)),
        measures=MEASURES,
        notice=notice,
    )


def lead(settings: Settings | None) -> str:
    """One line on what was compared."""
    if settings is None:
        return ""
    options, data = settings.options, settings.data
    seeds = len(options.get("seeds", [0]))
    parts = [
        f"Trained on {data.get('name', 'data')} ({show_count(data.get('train_tokens', 0))} tokens)",
        f"{options.get('budget')} in all, equal {options.get('equal')}",
        f"about {options.get('parameters')} parameters each",
        f"context {show_length(options.get('length', 0))}",
        f"{seeds} seed{'s' if seeds > 1 else ''}",
        settings.date[:10],
    ]
    return " · ".join(parts)
