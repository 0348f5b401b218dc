"""`lengthwise lengths`: from the options to the table, the recommended lengths and the report."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Any

from rich.console import Console

from lengthwise.commands.compare import INTERRUPTED
from lengthwise.comparison.length_advice import length_advice, length_table, models, recommendations
from lengthwise.comparison.length_report import length_report
from lengthwise.comparison.length_study import LengthPlan, LengthStudy, make_length_plan, trained_at
from lengthwise.comparison.runs import RESULTS, begun, carry_out, publish, require_measured, rewrite
from lengthwise.options.lengths import LengthsOptions
from lengthwise.reports.numbers import show_count
from lengthwise.reports.records import Record, Results, Skipped, load
from lengthwise.reports.terminal import console as terminal

RUNS = Path("lengths")
"""Where runs go that are given no --output."""


def lengths(options: LengthsOptions) -> int | None:
    """Train every model at every length, score them, print the table and write the report. 130 where Ctrl-C stopped it.

    Raises InputError for what can't work.
    """
    console = terminal(stderr=options.json)
    folder, before, options = begun(options, RUNS)
    plan = make_length_plan(options)
    if before.settings is not None:
        rewrite(folder / RESULTS, finished_of(before, plan))
    announce(plan, console)
    stopped = carry_out(
        folder,
        [plan.settings, *plan.candidates, *(Skipped("every model", m, None, why) for m, why in plan.text.left_out)],
        None,
        console,
        lambda records, timeline: LengthStudy(plan, records, folder, timeline).run(),
        lambda results, _: report(results, plan, folder, console),
    )
    if stopped:
        return INTERRUPTED
    require_measured(load(folder / RESULTS))
    return None


def finished_of(results: Results, plan: LengthPlan) -> list[Record]:
    """The results of an earlier run without what it had only begun."""
    done = {(f.candidate, f.seed) for f in results.finished}
    return [
        results.settings or plan.settings,
        *results.candidates.values(),
        *(p for p in results.training if (p.candidate, p.seed) in done),
        *(m for m in results.measurements if (m.candidate, m.seed) in done),
        *results.skipped,
        *results.finished,
    ]


def announce(plan: LengthPlan, console: Console) -> None:
    """What is about to happen."""
    names = ", ".join(m.name for m in plan.models)
    said = [
        f"training {names} at lengths {', '.join(str(at.length) for at in plan.arrangements)}",
        f"{plan.settings.recipe['training']}",
        f"on {show_count(len(plan.train))} tokens of {len(plan.train.documents)} files",
        *(f"left out: {note}" for note in [*plan.train.notes[:1], *(why for _, why in plan.text.left_out)]),
    ]
    console.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)


def report(results: Results, plan: LengthPlan, folder: Path, console: Console) -> None:
    """The table, the recommendation and the report, of whatever was measured."""
    again = f"lengthwise lengths --resume --output {folder}"
    missing = unfinished(results, plan)
    if not results.names:
        if missing:
            said = f"nothing was measured yet; go on with: {again}"
            console.print(said, markup=False, highlight=False, soft_wrap=True)
        return
    notice = ""
    if missing:
        notice = f"This run is not complete: {', '.join(missing)} not measured. Go on with: {again}"
    publish(length_report(results, length_advice(results, plan.options.tolerance), notice), folder, console)
    if plan.options.json:
        print(jsonlib.dumps(plain(results, plan.options.tolerance), indent=2))


def unfinished(results: Results, plan: LengthPlan) -> list[str]:
    """The models and lengths that some seed is missing of."""
    done = {(f.candidate, f.seed) for f in results.finished}
    return [c.name for c in plan.candidates if any((c.name, seed) not in done for seed in plan.options.seeds)]


def plain(results: Results, tolerance: float) -> dict[str, Any]:
    """The table and the recommendation as plain values."""
    table = []
    for model in models(results):
        found = length_table(results, model)
        for row in found.rows:
            errors = {task: results.value(trained_at(model, row.length), task) for task in row.scores}
            table.append(
                {
                    "model": model,
                    "length": row.length,
                    "windows_per_update": row.arrangement.windows,
                    "updates": row.arrangement.updates,
                    "seconds": row.seconds,
                    "of_longest": found.relative_seconds(row),
                    "scores": dict(row.scores),
                    "standard_errors": {task: value.error for task, value in errors.items() if value is not None},
                }
            )
    recommended = {
        model: {"overall": r.overall, "agrees": r.agrees, **r.by_task}
        for model, r in recommendations(results, tolerance).items()
    }
    return {"table": table, "recommended": recommended, "tolerance": tolerance}
