"""`lengthwise compare`: from the options to the table, the recommendation and the report."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from lengthwise.comparison.engine import Comparison
from lengthwise.comparison.plan import Plan, make_plan
from lengthwise.comparison.recommendation import recommend
from lengthwise.comparison.report import comparison_report
from lengthwise.comparison.runs import RESULTS, begun, carry_out, publish, rewrite
from lengthwise.options.comparison import CompareOptions
from lengthwise.reports.numbers import show_count, show_seconds
from lengthwise.reports.records import Record, Results
from lengthwise.reports.terminal import console as terminal

RUNS = Path("compare")
"""Where runs go that are given no --output."""

INTERRUPTED = 130


def compare(options: CompareOptions) -> int | None:
    """Train the candidates, measure them, print the summary and write the report. 130 where Ctrl-C stopped it.

    Raises InputError for what can't work.
    """
    console = terminal()
    folder, before, options = begun(options, RUNS)
    plan = make_plan(options)
    if options.data and plan.train.notes:
        more = f" and {len(plan.train.notes) - 1} more" if len(plan.train.notes) > 1 else ""
        console.print(f"left out: {plan.train.notes[0]}{more}", markup=False, highlight=False, soft_wrap=True)
    stopped = run(plan, before, folder, console)
    return INTERRUPTED if stopped else None


def run(plan: Plan, before: Results, folder: Path, console: Console) -> bool:
    """Run what is left of a plan and report what there is. True where Ctrl-C stopped it."""
    if before.settings is not None:
        rewrite(folder / RESULTS, finished_of(before, plan))
    announce(plan, console)
    training = plan.seconds * len(plan.candidates) * len(plan.options.seeds)
    return carry_out(
        folder,
        [plan.settings, *plan.candidates],
        training + plan.measuring,
        console,
        lambda records, timeline: Comparison(plan, records, folder, timeline).run(),
        lambda results, stopped: report(results, folder, console, stopped),
    )


def finished_of(results: Results, plan: Plan) -> list[Record]:
    """The results of an earlier run without what it had only begun."""
    done = {(f.candidate, f.seed) for f in results.finished if f.stage == "training"}
    measured = any(f.stage == "costs" for f in results.finished)
    costs = {"train_peak_bytes", "prefill_peak_bytes", "prefill_seconds", "decode_seconds", "state_bytes"}
    return [
        results.settings or plan.settings,
        *results.candidates.values(),
        *(p for p in results.training if (p.candidate, p.seed) in done),
        *(
            m
            for m in results.measurements
            if (measured if m.measure in costs else (m.candidate, m.seed) in done or not m.candidate)
        ),
        *(s for s in results.skipped if s.measure not in costs or measured),
        *results.finished,
    ]


def announce(plan: Plan, console: Console) -> None:
    """What is about to happen."""
    names = ", ".join(c.name for c in plan.candidates)
    counts = [c.parameters for c in plan.candidates]
    each = show_seconds(plan.seconds) if plan.options.equal == "seconds" else "equal tokens"
    seeds = f", {len(plan.options.seeds)} seeds" if len(plan.options.seeds) > 1 else ""
    console.print(
        f"comparing {names}\n"
        f"{show_count(min(counts))} to {show_count(max(counts))} parameters, {each} of training each{seeds}, on "
        f"{show_count(len(plan.train))} tokens of {len(plan.train.documents)} files",
        markup=False,
        highlight=False,
    )


def report(results: Results, folder: Path, console: Console, stopped: bool) -> None:
    """The table, the recommendation and the report, of whatever was measured."""
    if not results.names:
        console.print(f"nothing was measured yet; go on with: lengthwise compare --resume --output {folder}")
        return
    missing = [name for name in results.candidates if results.value(name, "bits_per_byte") is None]
    notice = ""
    if stopped or missing:
        notice = "This run is not complete" + (f": {', '.join(missing)} could not be scored." if missing else ".")
        notice += f" Go on with: lengthwise compare --resume --output {folder}"
    publish(comparison_report(results, recommend(results), notice), folder, console)
