"""What the verbs `systems`, `show` and `reproduce` do."""

from __future__ import annotations

import inspect
import json as jsonlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lengthwise.errors import InputError
from lengthwise.reports.terminal import console
from lengthwise.systems import SYSTEMS, find_entry, find_system
from lengthwise.systems.catalogue import CATALOGUE
from lengthwise.systems.parts import find_part
from lengthwise.systems.results import (
    FOLDER,
    Result,
    last_result,
    read_result,
    show_number,
    show_verdict,
    write_result,
)
from lengthwise.systems.system import Figure, Run, System

if TYPE_CHECKING:
    from lengthwise.ops.pattern import Pattern

LINE = 120
"""Characters of a line of code."""

DRAWN = 48
"""Tokens in the picture of a pattern."""


def list_systems(working: bool = False, find: str = "") -> int:
    """Print every system with its title and arXiv number, and which are built and hold.

    working: only those that are built. find: only those whose key, title or description holds this text.
    """
    wanted = find.casefold()
    entries = [
        e
        for e in CATALOGUE.values()
        if (not working or e.key in SYSTEMS) and wanted in f"{e.key} {e.title} {e.short} {e.arxiv}".casefold()
    ]
    if not entries:
        raise InputError(f"no system matches {find!r}; `lengthwise systems` lists all {len(CATALOGUE)}")
    out = console()
    table = Table("key", "title", "arXiv", "state", header_style="bold", pad_edge=False)
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    for entry in entries:
        works = entry.key in SYSTEMS
        table.add_row(entry.key, escape(entry.title), entry.arxiv, state(entry.key), style="" if works else "dim")
    out.print(table)
    built = sum(e.key in SYSTEMS for e in entries)
    out.print(f"{len(entries)} systems, {built} of them work; `lengthwise show KEY` explains one")
    return 0


def state(key: str) -> str:
    """How far a system is: not built, works, and what its last result says."""
    if key not in SYSTEMS:
        return "not built yet"
    result = last_result(key)
    return "works" if result is None else f"works, {result.verdict}"


def show(key: str) -> int:
    """Print what a system claims, what it is made of, how to use it, and what was measured last."""
    entry = find_entry(key)
    out = console()
    out.print(f"[bold]{entry.key}[/bold]: {escape(entry.title)} ({entry.year}), {entry.link}", soft_wrap=True)
    out.print(escape(entry.short))
    if key not in SYSTEMS:
        out.print("\nIn the catalogue, but not built yet.")
        return 0
    system = find_system(key)
    out.print(f"\n[bold]claim[/bold]: {escape(system.claim)}\n\n[bold]parts[/bold]")
    for name in system.parts:
        out.print(f"  [cyan]{name}[/cyan]: {escape(summary(find_part(name)))}", soft_wrap=True)
    out.print("\n[bold]use[/bold]")
    out.print(escape(usage(system)), highlight=False, soft_wrap=True)
    if system.pattern:
        out.print(f"\n[bold]pattern[/bold] {escape(system.pattern)}: {pattern_said(system)}\n", soft_wrap=True)
        out.print(pattern_of(system).picture(DRAWN), highlight=False, soft_wrap=True)
    result = last_result(key)
    if result is None:
        out.print(f"\nNot measured yet: lengthwise reproduce {key}")
        return 0
    out.print(f"\n[bold]measured[/bold] {measured_where(result)}")
    out.print(figures_table(result.figures))
    return 0


def summary(part: Any) -> str:
    """What a part is, on one line: how its docstring begins, or for a function that of its module, which defines it."""
    described = inspect.getmodule(part) if inspect.isfunction(part) else part
    first = (inspect.getdoc(described) or "").split("\n\n")[0]
    return " ".join(first.split())


def usage(system: System) -> str:
    """How to write the system, in Python and on the command line."""
    if not system.expression:
        functions = [find_part(name) for name in system.parts]
        return "\n".join(f"from {f.__module__} import {f.__name__}" for f in functions if inspect.isfunction(f))
    settings = ["vocab_size=256", "dim=192", f'layers="{system.expression}"']
    model = f"model = lw.LanguageModel({', '.join(settings)})"
    if len(model) > LINE:
        model = "\n".join(["model = lw.LanguageModel(", *(f"    {setting}," for setting in settings), ")"])
    return f'{model}\nlengthwise compare --layers "{system.expression}"'


def pattern_of(system: System) -> Pattern:
    """Who sees whom in a system."""
    from lengthwise.models.build import build_pattern

    return build_pattern(system.pattern)


def pattern_said(system: System) -> str:
    """How much of what a causal or full pattern shows the system's pattern shows, at the length that is drawn."""
    from lengthwise.ops.patterns import causal, full

    pattern = pattern_of(system)
    whole = causal() if pattern.causal else full()
    share, field = pattern.entries(DRAWN) / whole.entries(DRAWN), pattern.receptive_field()
    reach = "no limit to how far" if field is None else f"{field} places at most"
    return f"{share:.0%} of the pairs of {whole}, at {DRAWN} tokens; one layer reaches {reach}"


def measured_where(result: Result) -> str:
    """When and on what a result was measured, on one line."""
    machine, versions = result.machine, result.versions
    accelerator = f", {machine['accelerator']}" if machine.get("accelerator") else ""
    return (
        f"on {result.date[:10]}, {machine.get('processor', 'unknown processor')}, {machine.get('threads')} threads"
        f"{accelerator}, torch {versions.get('torch', 'unknown')}, seeds {', '.join(map(str, result.seeds))}"
    )


def figures_table(figures: Sequence[Figure]) -> Table:
    """Claimed, measured, threshold and whether it holds, one row a figure."""
    table = Table("figure", "claimed", "measured", "threshold", "", header_style="bold", pad_edge=False)
    table.columns[2].justify = "right"
    for figure in figures:
        style = {True: "green", False: "bold red", None: ""}[figure.holds]
        name = figure.name + (f" ({figure.note})" if figure.note else "")
        cells = (name, figure.claimed, show_number(figure.measured), figure.threshold, show_verdict(figure))
        table.add_row(*map(escape, cells[:4]), f"[{style}]{cells[4]}[/{style}]" if cells[4] else "")
    return table


def chosen(keys: Sequence[str]) -> list[str]:
    """The keys of the systems to run, each once; "all" stands for every system that is built."""
    if not keys:
        raise InputError("name one or more systems, or all; `lengthwise systems --working` lists those that work")
    wanted = [key for given in keys for key in (SYSTEMS if given == "all" else [given])]
    for key in wanted:
        find_entry(key)
    for key in wanted:
        find_system(key)
    return list(dict.fromkeys(wanted))


def reproduce(
    keys: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2),
    json: bool = False,
    output: Path = FOLDER,
    resume: bool = False,
) -> int:
    """Run the experiments of systems, print and write what was claimed and measured; 1 where something doesn't hold.

    keys: of systems, or "all". seeds: for the experiments' random numbers. json: print the results as JSON.
    output: folder for one KEY.json each. resume: leave out systems whose result there has the same seeds and versions.
    """
    from lengthwise.machine import versions

    wanted, results = chosen(keys), []
    out = console(stderr=json)
    for number, key in enumerate(wanted, start=1):
        kept = read_result(key, output) if resume else None
        if kept is not None and kept.same_conditions(seeds, versions()):
            results.append(kept)
            continue
        out.print(f"[bold]{key}[/bold] ({number} of {len(wanted)}): {escape(find_system(key).claim)}")
        result = run(find_system(key), tuple(seeds), output, out)
        results.append(result)
        out.print(figures_table(result.figures))
        out.print(f"{result.verdict}, {result.seconds:.0f} s\n", style="green" if result.holds else "bold red")
    if json:
        print(jsonlib.dumps([result.to_json() for result in results], indent=2))
    failed = [result.key for result in results if not result.holds]
    if len(results) > 1:
        out.print(
            f"{len(results) - len(failed)} of {len(results)} hold" + (f"; not: {', '.join(failed)}" if failed else "")
        )
    return 1 if failed else 0


def run(system: System, seeds: tuple[int, ...], output: Path, out: Console) -> Result:
    """Run one experiment and write its result. Stopped by Ctrl-C, it writes what it has, and stops."""
    from lengthwise.machine import machine, versions

    figures: list[Figure] = []
    begin = time.perf_counter()

    def result(complete: bool) -> Result:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        took = round(time.perf_counter() - begin, 1)
        return Result(system.key, now, took, seeds, tuple(figures), machine(), versions(), complete)

    try:
        with progress_bar(out) as bar:
            task = bar.add_task("", total=1.0)
            for figure in system.reproduce(Run(seeds, lambda text, fraction: update(bar, task, text, fraction))):
                figures.append(figure)
                shown = f"{figure.name}: {show_number(figure.measured)}"
                bar.console.print(escape(f"  {shown} {show_verdict(figure)}".rstrip()))
    except KeyboardInterrupt:
        if figures:
            write_result(result(complete=False), output)
        raise
    whole = result(complete=True)
    write_result(whole, output)
    return whole


def progress_bar(out: Console) -> Progress:
    """A bar with the time that is left."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=out, transient=True)


def update(bar: Progress, task: TaskID, text: str, fraction: float) -> None:
    """Show what is being done and how far the experiment is."""
    bar.update(task, description=escape(text), completed=min(max(fraction, 0.0), 1.0))
