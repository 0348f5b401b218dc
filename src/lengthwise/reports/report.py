"""What a report shows, whatever was measured: the page and the terminal read it from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lengthwise.reports.measures import Column, Measure
from lengthwise.reports.plots import Panel
from lengthwise.reports.records import Advice, Results
from lengthwise.reports.style import Style


@dataclass(frozen=True)
class Report:
    """Results, and how they are told.

    columns: those of the table, whose rows are `rows`, the best first by the column numbered `sorted_by`. looks: how
    each candidate is drawn. measures: by their names in the records. notice: what is missing, where something is.
    """

    results: Results
    title: str
    lead: str
    advice: Sequence[Advice]
    columns: Sequence[Column]
    rows: Sequence[str]
    panels: Sequence[Panel]
    looks: Mapping[str, Style]
    measures: Mapping[str, Measure]
    notice: str = ""
    sorted_by: int = 0
