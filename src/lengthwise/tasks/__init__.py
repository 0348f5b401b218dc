"""Data with a metric: synthetic tasks that generate themselves, and corpora of the user's own files."""

from __future__ import annotations

from lengthwise.tasks.addition import Addition
from lengthwise.tasks.copying import Copying, DelayedCopying, SelectiveCopying
from lengthwise.tasks.corpus import Corpus, read, standard_library
from lengthwise.tasks.cue import Cue
from lengthwise.tasks.letters import DuplicateNgram, LetterCopying, PhoneBook, PrefixLookup, SuffixLookup
from lengthwise.tasks.listops import ListOps
from lengthwise.tasks.pictures import Crops
from lengthwise.tasks.recall import (
    AssociativeRecall,
    DistantRecall,
    GapRecall,
    Induction,
    Overwriting,
    Passkey,
    SingleRecall,
)
from lengthwise.tasks.slots import SlotQuestion, SlotRecall, SlotText
from lengthwise.tasks.task import Example, Task

TASKS: dict[str, type[Task]] = {
    "copying": Copying,
    "selective_copying": SelectiveCopying,
    "delayed_copying": DelayedCopying,
    "letter_copying": LetterCopying,
    "duplicate_ngram": DuplicateNgram,
    "prefix_lookup": PrefixLookup,
    "suffix_lookup": SuffixLookup,
    "phone_book": PhoneBook,
    "associative_recall": AssociativeRecall,
    "single_recall": SingleRecall,
    "distant_recall": DistantRecall,
    "overwriting": Overwriting,
    "induction": Induction,
    "gap_recall": GapRecall,
    "passkey": Passkey,
    "cue": Cue,
    "addition": Addition,
    "listops": ListOps,
    "slot_recall": SlotRecall,
    "slot_question": SlotQuestion,
    "slot_text": SlotText,
}

__all__ = [
    "TASKS",
    "Addition",
    "AssociativeRecall",
    "Copying",
    "Corpus",
    "Crops",
    "Cue",
    "DelayedCopying",
    "DistantRecall",
    "DuplicateNgram",
    "Example",
    "GapRecall",
    "Induction",
    "LetterCopying",
    "ListOps",
    "Overwriting",
    "Passkey",
    "PhoneBook",
    "PrefixLookup",
    "SelectiveCopying",
    "SingleRecall",
    "SlotQuestion",
    "SlotRecall",
    "SlotText",
    "SuffixLookup",
    "Task",
    "read",
    "standard_library",
]
