"""The summary as a table of the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lengthwise.reports.measures import Column
from lengthwise.reports.records import Results, Value
from lengthwise.reports.report import Report


def show_cell(results: Results, col: Column, candidate: str, errors: bool = True) -> str:
    """A cell as text: the value, with its standard error where it has one and `errors` asks for it."""
    value = col.value(results, candidate)
    if value is None:
        return "–"
    if not col.measure.paired:
        return col.measure.show(value.value)
    number, error = show_estimate(value)
    return f"{number} ± {error}" if error and errors else number


def show_estimate(value: Value) -> tuple[str, str]:
    """A measured mean and its standard error (empty where there is none), to the digit that the error allows."""
    error = 0.0 if value.error < 0.0005 else value.error
    places = 3 if 0 < error < 0.005 else 2
    number = f"{value.value + 0.0:.{places}f}"
    number = number.removeprefix("-") if float(number) == 0 else number
    return number, f"{error:.{places}f}" if error else ""


def summary_table(report: Report) -> Table:
    """One row a candidate, the best first; what is best in a column, or can't be told from it, is green."""
    results, columns = report.results, report.columns
    leaders = {col.heading: set(col.leaders(results)) for col in columns}
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("candidate")
    for col in columns:
        table.add_column(col.heading, justify="right", min_width=7)
    for name in report.rows:
        cells = [Text(short_name(name))]
        for col in columns:
            best = name in leaders[col.heading]
            shown = show_cell(results, col, name, errors=col.errors and col.at is None)
            cells.append(Text(shown, style="bold green" if best else ""))
        table.add_row(*cells)
    return table


def short_name(name: str, limit: int = 40) -> str:
    """A name that leaves room for the numbers."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def print_summary(console: Console, report: Report, path: str) -> None:
    """The table, the recommendation and where the page is."""
    if report.rows:
        console.print(summary_table(report))
        console.print("[dim]green: best of its column, or not told apart from the best[/dim]\n")
    said = [f"[bold]{escape(one.purpose)}: {escape(one.pick)}.[/bold] {escape(one.reason)}" for one in report.advice]
    console.print(Group(*said))
    console.print(f"\nreport: [bold]{escape(path)}[/bold]", soft_wrap=True)
