"""`lengthwise check`: finds what to check, holds it to the laws and prints what came of it."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from torch import nn

from lengthwise.errors import InputError, unknown
from lengthwise.laws.check import LAWS, examine
from lengthwise.laws.law import Case, Law, Verdict
from lengthwise.laws.script import script
from lengthwise.laws.subject import Subject, Target
from lengthwise.laws.transformers_adapter import from_folder, tiny
from lengthwise.models.encoder_decoder import EncoderDecoder

Builder = Callable[..., nn.Module]

MARKS = {"holds": "green", "broken": "bold red", "excused": "yellow", "does not apply": "dim"}


def find(target: str, build: Builder, load: Builder | None = None) -> Target:
    """What `target` names: `transformers:Class`, `module:Class`, a folder with a model, or an expression.

    build: makes a part from an expression and `dim`. load: reads a model that lengthwise saved.
    Raises InputError where there is no such thing.
    """
    if target.startswith("transformers:"):
        return tiny(target.partition(":")[2])
    folder = Path(target)
    if folder.is_dir():
        return _from_folder(folder, load)
    if ":" in target:
        return _imported(*target.split(":", 1))
    if "/" in target or "\\" in target:
        raise InputError(f"there is no folder {target}")
    return lambda dim: build(target, dim=dim)


def _from_folder(folder: Path, load: Builder | None) -> Target:
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} has no config.json, so it is no saved model") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{folder / 'config.json'} can't be read as JSON: {error}") from error
    architectures = config.get("architectures") if isinstance(config, dict) else None
    if architectures:
        return from_folder(folder, str(architectures[0]))
    if load is None:
        raise InputError(f"{folder / 'config.json'} names no architecture of transformers")
    model = load(folder)
    if isinstance(model, EncoderDecoder):  # what answers a source is checked with one
        return model.answering(torch.arange(8)[None] % model.encoder.vocab_size)
    return model


def _imported(module: str, name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        thing = importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"can't import {module}: {error}") from error
    for part in name.split("."):
        if not hasattr(thing, part):
            callables = [key for key in vars(thing) if callable(getattr(thing, key)) and not key.startswith("_")]
            raise unknown(f"name in {module}", part, callables)
        thing = getattr(thing, part)
    if not callable(thing):
        raise InputError(f"{module}:{name} is neither a module nor a class or function that makes one")
    return thing


def run_check(
    target: str,
    *,
    build: Builder,
    load: Builder | None = None,
    dim: int | None = None,
    laws: Sequence[str] | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> int:
    """Print a table of the laws for `target`. Returns 1 where one is broken, else 0. Raises InputError on bad input."""
    console = console or Console()
    for name in laws or ():
        if name not in LAWS:
            raise unknown("law", name, LAWS)
    subject = _subject(find(target, build, load), target, dim, seed)
    verdicts: list[Verdict] = []
    waiting: list[Law] = []

    def shown(final: bool = False) -> Group:
        table = _table(target, verdicts)
        left = len(laws or LAWS) - len(verdicts)
        note = (
            Spinner("dots", f"{waiting[-1].name}: {waiting[-1].says} ({left} to go)") if waiting and not final else ""
        )
        return Group(table, note)

    def started(law: Law) -> None:
        waiting.append(law)
        live.update(shown())

    with Live(shown(), console=console, transient=False) as live:
        for verdict in examine(subject, laws, started):
            verdicts.append(verdict)
            live.update(shown())
        live.update(shown(final=True))
    broken = [verdict for verdict in verdicts if verdict.outcome == "broken"]
    for verdict in broken:
        _print_finding(console, subject, verdict)
    silent = [verdict for verdict in verdicts if verdict.outcome == "does not apply"]
    if silent:
        said = "; ".join(f"{verdict.law} ({verdict.message})" for verdict in silent)
        console.print(f"Not asked of it: {said}.", style="dim", highlight=False, markup=False)
    counts = Counter(verdict.outcome for verdict in verdicts)
    said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("holds", "broken", "excused") if counts[outcome])
    console.print(f"{target}: {said.replace('holds', 'hold' if counts['holds'] > 1 else 'holds')}", markup=False)
    return 1 if broken else 0


def _subject(found: Target, target: str, dim: int | None, seed: int) -> Subject:
    try:
        subject = Subject(found, dim, seed)
    except InputError:
        raise
    except TypeError as error:
        wanted = "give a class or function that needs no argument but dim"
        raise InputError(f"can't make {target}: {error}; {wanted}") from error
    x = subject.inputs(Case())
    try:
        subject.run(x)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"{target} doesn't run on an input of shape {list(x.shape)}: {reason}") from error
    return subject


def _table(target: str, verdicts: list[Verdict]) -> Table:
    table = Table(title=f"The laws on {target}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("law", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("")
    for v in verdicts:
        if v.outcome == "does not apply":
            continue
        note = {"holds": LAWS[v.law].says, "broken": f"smallest case: {v.case}" if v.case else v.message}
        said = Text(note.get(v.outcome, v.message), style=MARKS[v.outcome] if v.outcome != "holds" else "dim")
        table.add_row(v.law, Text(v.outcome, style=MARKS[v.outcome]), f"{v.seconds:.2f}", said)
    return table


def _print_finding(console: Console, subject: Subject, verdict: Verdict) -> None:
    console.print(Text(f"\n{verdict.law} is broken", style="bold red"), f"(the law: {LAWS[verdict.law].says})")
    lines = {"first seen on": verdict.first, "smallest case": (verdict.case, verdict.message) if verdict.case else None}
    shown = [f"{name}: {found[0]}\n    {found[1]}" for name, found in lines.items() if found] or [verdict.message]
    for line in dict.fromkeys(shown):
        console.print(f"  {line}", highlight=False, markup=False)
    program = script(subject, verdict)
    if program:
        console.print("  To see it without lengthwise, run:\n", markup=False)
        print(program, file=console.file)  # as it is: no wrapping, no colours, so that it can be copied
        console.print()
