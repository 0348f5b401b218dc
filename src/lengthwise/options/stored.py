"""Options as plain values and back: how a run is written down, resumed, and run again. Imports no torch."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from lengthwise.errors import InputError

FREE = ("json", "output", "resume")
"""Options that don't change what is measured."""

Options = TypeVar("Options")


def as_json(options: Any) -> dict[str, Any]:
    """Options as plain values."""
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(options).items()}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items() if name not in FREE}


def from_json(stored: dict[str, Any], options: Options) -> Options:
    """The options of an earlier run, to go on with it. Raises InputError where `options` ask for something else."""
    kind: Any = type(options)
    asked, default = as_json(options), as_json(kind())
    for name, value in asked.items():
        if value != default[name] and value != stored.get(name):
            raise InputError(
                f"the run to resume was started with --{name.replace('_', '-')} {stored.get(name)} and can't go on "
                f"with {value}; leave the option out, or start a new run in another --output"
            )
    known = {f.name for f in dataclasses.fields(kind)}
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in stored.items() if name in known
    }
    if values.get("tokenizer") is not None:
        values["tokenizer"] = Path(values["tokenizer"])
    kept = {name: getattr(options, name) for name in FREE if name in known}
    return kind(**{**values, **kept})


def command_line(options: Any, verb: str, repeated: Sequence[str] = ()) -> str:
    """The command that runs a verb with these options, defaults spelled out. `repeated` are given once a value."""
    words = ["lengthwise", verb, *options.data]
    for name, value in as_json(options).items():
        flag = f"--{name.replace('_', '-')}"
        if name == "data" or value in (None, []):
            continue
        if name in repeated:
            words += [word for item in value for word in (flag, item)]
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)
