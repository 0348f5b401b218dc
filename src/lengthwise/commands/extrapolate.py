"""`lengthwise extrapolate`: from the options to the table, the recommendation and the report."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from lengthwise.comparison.runs import RESULTS, begun, carry_out, publish, require_measured, rewrite
from lengthwise.extrapolation.engine import Extrapolation
from lengthwise.extrapolation.finished import finished_of, unfinished
from lengthwise.extrapolation.plan import Plan, make_plan
from lengthwise.extrapolation.report import as_json, extrapolation_report
from lengthwise.models.files import write_text
from lengthwise.options.extrapolation import ExtrapolateOptions
from lengthwise.reports.numbers import show_count, show_length
from lengthwise.reports.records import Results, load
from lengthwise.reports.terminal import console as terminal

RUNS = Path("extrapolate")
"""Where runs go that are given no --output."""

NUMBERS = "report.json"
INTERRUPTED = 130


def extrapolate(options: ExtrapolateOptions) -> int | None:
    """Train or load the models, measure them, print the summary and write the report. 130 where Ctrl-C stopped it.

    Raises InputError for what can't work.
    """
    console = terminal()
    folder, before, options = begun(options, RUNS)
    plan = make_plan(options)
    if before.settings is not None:
        rewrite(folder / RESULTS, finished_of(before, plan))
    announce(plan, console)
    stopped = carry_out(
        folder,
        [plan.settings, *plan.candidates],
        None,
        console,
        lambda records, timeline: Extrapolation(plan, records, folder, timeline).run(),
        lambda results, stopped: report(results, plan, folder, console, stopped),
    )
    if stopped:
        return INTERRUPTED
    require_measured(load(folder / RESULTS))
    return None


def announce(plan: Plan, console: Console) -> None:
    """What is about to happen."""
    names = ", ".join(s.name for s in plan.subjects)
    sizes = [s.parameters for s in plan.subjects]
    did = "measuring" if plan.options.checkpoints else "training and measuring"
    console.print(
        f"{did} {names}\n{show_count(min(sizes))} to {show_count(max(sizes))} parameters, trained at "
        f"{plan.grid.trained} tokens, measured up to {show_length(plan.grid.lengths[-1])}, on "
        f"{len(plan.windows)} windows of held-out text",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for why in plan.left_out:
        console.print(f"left out: {why}, and no model here has that", markup=False, highlight=False, soft_wrap=True)


def report(results: Results, plan: Plan, folder: Path, console: Console, stopped: bool) -> None:
    """The table, the recommendation and the report, of whatever was measured."""
    again = f"lengthwise extrapolate --resume --output {folder}"
    missing = unfinished(results, plan)
    if not results.names:
        if missing:
            said = f"nothing was measured yet; go on with: {again}"
            console.print(said, markup=False, highlight=False, soft_wrap=True)
        return
    notice = f"This run is not complete: {', '.join(missing)} left. Go on with: {again}" if missing or stopped else ""
    told = extrapolation_report(results, notice)
    write_text(folder / NUMBERS, json.dumps(as_json(told), indent=2, ensure_ascii=False) + "\n")
    publish(told, folder, console)
