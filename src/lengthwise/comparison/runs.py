"""The folder of a run: its results, which can be gone on with, and the report of whatever there is."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from lengthwise.comparison.progress import Timeline
from lengthwise.errors import InputError
from lengthwise.options.stored import Options, from_json
from lengthwise.reports.page import write_report
from lengthwise.reports.records import Record, RecordFile, Results, load, to_json
from lengthwise.reports.report import Report
from lengthwise.reports.tables import print_summary
from lengthwise.training.failure import Diverged

RESULTS, REPORT = "results.jsonl", "report.html"


def run_folder(output: Path | None, resume: bool, runs: Path) -> Path:
    """The folder of a run: the one given, the latest under `runs` to resume, or a new one named after the time."""
    if output is not None:
        return output
    if not resume:
        return runs / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    earlier = sorted(runs.glob(f"*/{RESULTS}"))
    if not earlier:
        raise InputError(f"there is no run to resume under {runs}/; give its folder with --output")
    return earlier[-1].parent


def earlier_results(folder: Path, resume: bool) -> Results:
    """What a run to resume has measured; nothing for a new one, whose folder must hold no run yet."""
    if not resume:
        if (folder / RESULTS).exists():
            raise InputError(f"{folder} holds an earlier run; go on with it by --resume, or give another --output")
        return Results()
    before = load(folder / RESULTS)
    if before.settings is None:
        raise InputError(f"{folder / RESULTS} doesn't say how its run was started; start a new one")
    return before


def begun(options: Options, runs: Path) -> tuple[Path, Results, Options]:
    """The folder of a run, what it has measured, and the options that it began with, where it goes on with one."""
    given: Any = options
    folder = run_folder(given.output, given.resume, runs)
    before = earlier_results(folder, given.resume)
    if before.settings is not None:
        options = from_json(before.settings.options, options)
    return folder, before, options


def rewrite(path: Path, records: Iterable[Record]) -> None:
    """Replace the results in a file, whole or not at all."""
    draft = path.with_suffix(".tmp")
    try:
        draft.write_text("".join(to_json(record) + "\n" for record in records), encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror}); make room and try again") from None


def carry_out(
    folder: Path,
    opening: Iterable[Record],
    planned: float | None,
    console: Console,
    work: Callable[[RecordFile, Timeline], None],
    report: Callable[[Results, bool], None],
) -> bool:
    """Do `work`, whose results go to the folder, and `report` what there is, however it ends. True where Ctrl-C
    stopped it.

    opening: what the results of a new run begin with. planned: the seconds that it should take, or None where the work
    finds out.
    """
    path, stopped = folder / RESULTS, False
    with RecordFile(path, load(path) if path.exists() else None) as records:
        if records.results.settings is None:
            for record in opening:
                records.write(record)
        try:
            with Timeline(console, planned) as timeline:
                work(records, timeline)
        except KeyboardInterrupt:
            stopped = True
        finally:
            report(records.results, stopped)
    return stopped


def require_measured(results: Results) -> None:
    """Raise Diverged where a run that has ended has nothing to report, with the first reason."""
    reasons = [f"{s.candidate}: {s.reason}" for s in results.skipped if s.candidate in results.candidates]
    if reasons and not results.names:
        raise Diverged(f"nothing could be measured; {reasons[0]}")


def publish(report: Report, folder: Path, console: Console) -> None:
    """Write the page, and print the table and the recommendation."""
    path = folder / REPORT
    write_report(path, report)
    console.print()
    print_summary(console, report, str(path))
    if report.notice:
        console.print(report.notice, markup=False, highlight=False)
