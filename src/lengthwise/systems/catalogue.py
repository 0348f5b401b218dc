"""All systems that lengthwise is about, as data: what `lengthwise systems` lists before anything heavy is imported."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Entry:
    """One published system.

    key: its name in commands and files. short: what it is in one line, in the field's own terms.
    """

    key: str
    title: str
    arxiv: str
    year: int
    short: str

    @property
    def link(self) -> str:
        """The address of the paper."""
        return f"https://arxiv.org/abs/{self.arxiv}"


def _read() -> dict[str, Entry]:
    text = files("lengthwise.systems").joinpath("catalogue.json").read_text(encoding="utf-8")
    return {row["key"]: Entry(**row) for row in json.loads(text)}


CATALOGUE = _read()
"""Every system by its key, sorted."""
