"""The parts that a system names as ROOM.NAME, looked up in the tables of the rooms."""

from __future__ import annotations

import importlib
from typing import Any

from lengthwise.errors import InputError

TABLES = {
    "mixers": "MIXERS",
    "positions": "POSITIONS",
    "channels": "CHANNELS",
    "caches": "CACHES",
    "reducers": "REDUCERS",
    "tasks": "TASKS",
}
"""The rooms that have a table, and its name. Parts of other rooms are modules with something of the same name."""


def find_part(name: str) -> Any:
    """What "mixers.mamba" or "ops.scan" stands for: a class or a function; else the module of that name."""
    room, _, part = name.partition(".")
    try:
        if room in TABLES:
            table = getattr(importlib.import_module(f"lengthwise.{room}"), TABLES[room])
            if part in table:
                return table[part]
        module = importlib.import_module(f"lengthwise.{name}")
    except ImportError:
        raise InputError(f"there is no part {name!r}; a part is named ROOM.NAME, such as mixers.mamba") from None
    return getattr(module, name.rpartition(".")[2], module)
