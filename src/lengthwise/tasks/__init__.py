"""Data with a metric: synthetic tasks that generate themselves, and corpora of the user's own files."""

from __future__ import annotations

from lengthwise.tasks.addition import Addition
from lengthwise.tasks.copying import Copying, SelectiveCopying
from lengthwise.tasks.corpus import Corpus, read, standard_library
from lengthwise.tasks.listops import ListOps
from lengthwise.tasks.recall import (
    AssociativeRecall,
    DistantRecall,
    GapRecall,
    Induction,
    Overwriting,
    Passkey,
    SingleRecall,
)
from lengthwise.tasks.task import Example, Task

TASKS: dict[str, type[Task]] = {
    "copying": Copying,
    "selective_copying": SelectiveCopying,
    "associative_recall": AssociativeRecall,
    "single_recall": SingleRecall,
    "distant_recall": DistantRecall,
    "overwriting": Overwriting,
    "induction": Induction,
    "gap_recall": GapRecall,
    "passkey": Passkey,
    "addition": Addition,
    "listops": ListOps,
}

__all__ = [
    "TASKS",
    "Addition",
    "AssociativeRecall",
    "Copying",
    "Corpus",
    "DistantRecall",
    "Example",
    "GapRecall",
    "Induction",
    "ListOps",
    "Overwriting",
    "Passkey",
    "SelectiveCopying",
    "SingleRecall",
    "Task",
    "read",
    "standard_library",
]
