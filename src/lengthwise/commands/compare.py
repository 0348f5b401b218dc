"""`lengthwise compare`: from the options to the table, the recommendation and the report."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from rich.console import Console

from lengthwise.comparison.engine import Comparison
from lengthwise.comparison.plan import Plan, from_json, make_plan
from lengthwise.comparison.progress import Timeline
from lengthwise.comparison.recommendation import recommend
from lengthwise.errors import InputError
from lengthwise.options.comparison import CompareOptions
from lengthwise.reports.numbers import show_count, show_seconds
from lengthwise.reports.page import write_report
from lengthwise.reports.records import Record, RecordFile, Results, load, to_json
from lengthwise.reports.tables import print_summary
from lengthwise.reports.terminal import console as terminal

RESULTS, REPORT = "results.jsonl", "report.html"
RUNS = Path("compare")
"""Where runs go that are given no --output."""

INTERRUPTED = 130


def compare(options: CompareOptions) -> int | None:
    """Train the candidates, measure them, print the summary and write the report. 130 where Ctrl-C stopped it.

    Raises InputError for what can't work.
    """
    console = terminal()
    folder = run_folder(options)
    before = Results()
    if options.resume:
        before = load(folder / RESULTS)
        if before.settings is None:
            raise InputError(f"{folder / RESULTS} doesn't say how its run was started; start a new one")
        options = from_json(before.settings.options, options)
    elif (folder / RESULTS).exists():
        raise InputError(f"{folder} holds an earlier run; go on with it by --resume, or give another --output")
    plan = make_plan(options)
    if options.data and plan.train.notes:
        more = f" and {len(plan.train.notes) - 1} more" if len(plan.train.notes) > 1 else ""
        console.print(f"left out: {plan.train.notes[0]}{more}", markup=False, highlight=False, soft_wrap=True)
    stopped = run(plan, before, folder, console)
    return INTERRUPTED if stopped else None


def run_folder(options: CompareOptions) -> Path:
    """The folder of the run: the one given, the latest to resume, or a new one named after the time."""
    if options.output is not None:
        return options.output
    if not options.resume:
        return RUNS / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    earlier = sorted(RUNS.glob(f"*/{RESULTS}"))
    if not earlier:
        raise InputError(f"there is no run to resume under {RUNS}/; give its folder with --output")
    return earlier[-1].parent


def run(plan: Plan, before: Results, folder: Path, console: Console) -> bool:
    """Run what is left of a plan and report what there is. True where Ctrl-C stopped it."""
    stopped = False
    path = folder / RESULTS
    if before.settings is not None:
        keep_finished(path, before, plan)
    with RecordFile(path, load(path) if path.exists() else None) as records:
        if records.results.settings is None:
            records.write(plan.settings)
            for candidate in plan.candidates:
                records.write(candidate)
        announce(plan, console)
        training = plan.seconds * len(plan.candidates) * len(plan.options.seeds)
        try:
            with Timeline(console, training + plan.measuring) as timeline:
                Comparison(plan, records, folder, timeline).run()
        except KeyboardInterrupt:
            stopped = True
        finally:
            report(records.results, folder, console, stopped)
    return stopped


def keep_finished(path: Path, results: Results, plan: Plan) -> None:
    """Rewrite the results of an earlier run without what it had only begun."""
    done = {(f.candidate, f.seed) for f in results.finished if f.stage == "training"}
    measured = any(f.stage == "costs" for f in results.finished)
    costs = {"train_peak_bytes", "prefill_peak_bytes", "prefill_seconds", "decode_seconds", "state_bytes"}
    kept: list[Record] = [
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
    draft = path.with_suffix(".tmp")
    try:
        draft.write_text("".join(to_json(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror}); make room and try again") from None


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
    advice = recommend(results)
    path = folder / REPORT
    write_report(path, results, advice, notice)
    console.print()
    print_summary(console, results, advice, str(path))
    if notice:
        console.print(notice, markup=False, highlight=False)
