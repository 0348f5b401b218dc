"""A report as one HTML file that holds everything it needs, and works offline."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError
from lengthwise.reports.measures import MEASURES, Column, Measure
from lengthwise.reports.numbers import show_count, show_length
from lengthwise.reports.plots import Panel
from lengthwise.reports.records import Advice, Candidate, Results, Settings
from lengthwise.reports.report import Report
from lengthwise.reports.style import Style, styles
from lengthwise.reports.tables import show_estimate

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="lead">{lead}</p>
{notice}
{picks}
{summary}
{chips}
<div class="panels">{panels}</div>
{left_out}
{settings}
</main>
<script type="application/json" id="report-data">{data}</script>
<script>{plotly}</script>
<script>{js}</script>
</body>
</html>
"""


def write_report(path: Path, report: Report) -> None:
    """Write a report, whole or not at all."""
    draft = path.with_suffix(".html.tmp")
    try:
        draft.write_text(render(report), encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise InputError(f"the report can't be written to {path} ({error.strerror}); give another folder") from None


def render(report: Report) -> str:
    """The page as text."""
    from plotly.offline import get_plotlyjs

    results, notice = report.results, report.notice
    return PAGE.format(
        title=escape(report.title),
        lead=escape(report.lead),
        css=_part("page.css"),
        js=_part("page.js"),
        plotly=get_plotlyjs(),
        notice=f'<p class="notice">{escape(notice)}</p>' if notice else "",
        picks=picks(results, report.advice, report.looks),
        summary=summary(report),
        chips=chips(results, report.looks),
        panels="\n".join(panel_html(panel) for panel in report.panels),
        left_out=left_out(results, report.measures),
        settings=settings_html(results.settings, results.candidates),
        data=script_json({"names": results.names, "panels": [panel_data(panel) for panel in report.panels]}),
    )


def _part(name: str) -> str:
    return files("lengthwise.reports").joinpath(name).read_text(encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no `<` that could end it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def panel_data(panel: Panel) -> dict[str, Any]:
    """What the page's script needs of a panel."""
    views = [{"figure": v.figure, "takeaway": v.takeaway} for v in panel.views]
    return {"key": panel.key, "views": views}


def picks(results: Results, advice: Sequence[Advice], look: Mapping[str, Style] | None = None) -> str:
    """The recommendation, a card for each purpose."""
    look = styles(list(results.candidates)) if look is None else look
    cards = []
    for item in advice:
        colour = look[item.pick].colour if item.pick in look else "#5d6673"
        cards.append(
            f'<div class="pick" style="--colour:{colour}"><div class="for">{escape(item.purpose)}</div>'
            f'<div class="name">{escape(item.pick)}</div><p>{escape(item.reason)}</p></div>'
        )
    return f'<div class="picks" id="recommendation">{"".join(cards)}</div>' if cards else ""


def chips(results: Results, look: Mapping[str, Style] | None = None) -> str:
    """A button for each candidate that brings it out in every plot."""
    look = styles(list(results.candidates)) if look is None else look
    buttons = (
        f'<button type="button" aria-pressed="false" data-name="{escape(name)}" style="--colour:{look[name].colour}">'
        f'<span class="dot"></span><span class="text">{escape(name)}</span></button>'
        for name in results.names
    )
    return f'<div class="chips" role="group" aria-label="bring out a candidate">{"".join(buttons)}</div>'


def summary(report: Report) -> str:
    """The table: one row a candidate, sorted by a click on a heading."""
    results, columns = report.results, report.columns
    first = {col: "ascending" if col.measure.lower_is_better else "descending" for col in columns}
    heads = [_head("candidate", "ascending"), _head("parameters", "ascending")]
    heads += [_head(col.heading, first[col], sorted_by=i == report.sorted_by) for i, col in enumerate(columns)]
    leaders = {col: set(col.leaders(results)) for col in columns}
    rows = []
    for name in report.rows:
        candidate = results.candidates[name]
        cells = [
            f'<td data-value="{escape(name)}"><span class="dot" style="--colour:{report.looks[name].colour}"></span>'
            f"{escape(name)}{_expression(candidate)}</td>",
            f'<td data-value="{candidate.parameters}">{show_count(candidate.parameters)}</td>',
            *(_cell(results, col, name, name in leaders[col]) for col in columns),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    note = "Green: best of its column, or not told apart from the best by the noise. Click a heading to sort."
    return (
        '<section class="card"><h2>Summary</h2><div class="scroll"><table id="summary"><thead><tr>'
        f"{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="lead" style="margin:10px 0 0;font-size:13px">{note}</p></section>'
    )


def _expression(candidate: Candidate) -> str:
    return "" if candidate.name == candidate.layers else f"<code>{escape(candidate.layers)}</code>"


def _head(text: str, first: str, sorted_by: bool = False) -> str:
    mark = f' aria-sort="{first}"' if sorted_by else ""
    return f'<th scope="col" data-first="{first}"{mark}><button type="button">{escape(text)}</button></th>'


def _cell(results: Results, col: Column, name: str, best: bool) -> str:
    value = col.value(results, name)
    if value is None:
        return '<td data-value="">–</td>'
    text = escape(col.measure.show(value.value))
    if col.measure.paired:
        number, error = show_estimate(value)
        text = f'{number} <span class="error">± {error}</span>' if error and col.errors else number
    known = [v.value for n in results.names if (v := col.value(results, n)) is not None]
    bar = ""
    if max(known) > 0 and not col.measure.paired:
        share = max(2.0, 100 * max(0.0, value.value) / max(known))
        bar = f'<span class="bar" style="width:{share:.0f}%"></span>'
    return f'<td data-value="{value.value!r}"{" class=best" if best else ""}>{text}{bar}</td>'


def panel_html(panel: Panel) -> str:
    """The frame that the script draws a panel into."""
    buttons = "".join(f'<button type="button" aria-pressed="false">{escape(v.button)}</button>' for v in panel.views)
    views = f'<div class="views" role="group">{buttons}</div>' if len(panel.views) > 1 else ""
    wide = " wide" if panel.wide else ""
    return (
        f'<section class="card panel{wide}" id="panel-{panel.key}">'
        f"<header><h2>{escape(panel.title)}</h2>{views}</header>"
        f'<p class="takeaway"></p><div class="plot"></div><p class="note">{escape(panel.note)}</p></section>'
    )


def left_out(results: Results, measures: Mapping[str, Measure] = MEASURES) -> str:
    """What was skipped and why."""
    items: dict[str, None] = {}
    for s in results.skipped:
        title = measures[s.measure].title if s.measure in measures else s.measure
        at = f" from {show_length(s.at)} tokens on" if s.at is not None else ""
        items[f"{s.candidate}: {title}{at}: {s.reason}"] = None
    if not items:
        return ""
    rows = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<section class="card"><h2>Not measured</h2><ul class="left-out">{rows}</ul></section>'


def settings_html(settings: Settings | None, candidates: dict[str, Candidate]) -> str:
    """Every setting, and the command that runs it again."""
    if settings is None:
        return ""
    rows: dict[str, str] = {}
    for group in (settings.data, settings.recipe, settings.options, settings.machine):
        rows.update({key.replace("_", " "): _shown(value) for key, value in group.items()})
    for c in candidates.values():
        rows[f"candidate {c.name}"] = f"{c.layers}, dim {c.dim}, {c.parameters:,} parameters"
    entries = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in rows.items())
    return (
        '<section class="card" id="settings"><h2>Run it again</h2>'
        f"<pre>{escape(settings.command)}</pre><dl>{entries}</dl></section>"
    )


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)
