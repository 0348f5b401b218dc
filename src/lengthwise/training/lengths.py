"""Which length to train at: the same budget of tokens, cut into windows of several lengths, and one model for each.

    stream = x_1 … x_N          windows of S tokens: (x_1 … x_S), (x_{S+1} … x_{2S}), …, shuffled once
    updates = ⌊T / (S · B)⌋     T: tokens to train on, as often as it takes to read the stream; B: windows of an update

B is what decides whether lengths are compared or numbers of updates: with B = B_tok / S every length has equally many
updates of equally many tokens (`equal_tokens_per_update`); with B the same for all lengths short windows have more and
smaller updates (`equal_windows_per_update`).

Windows don't overlap, cross from one document into the next, and are read as they are: long ones mix documents, short
ones cut sentences. Salhan et al. 2025, arXiv 2510.19493.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from lengthwise.errors import InputError, unknown
from lengthwise.training.fit import fit

MODES = ("equal_tokens_per_update", "equal_windows_per_update")
"""What the updates of all lengths have in common."""

Score = Callable[[nn.Module, int], float]
"""A score of a trained model, which may be given at most so many tokens at once as it was trained with."""


@runtime_checkable
class Stream(Protocol):
    """Tokens laid end to end: `lengthwise.tasks.corpus.Corpus` is one."""

    def __len__(self) -> int: ...

    def cut(self, begin: int, end: int) -> Tensor:
        """The tokens from `begin` to `end`."""


@dataclass(frozen=True)
class Arrangement:
    """How a budget is spent at one length: so many updates, each of so many windows of `length` tokens."""

    length: int
    windows: int
    updates: int

    @property
    def tokens(self) -> int:
        """Tokens read in all."""
        return self.length * self.windows * self.updates


def arrange(length: int, token_budget: int, *, per_update: int, mode: str = "equal_tokens_per_update") -> Arrangement:
    """The windows of an update and the number of updates at one length.

    per_update: tokens of an update where all lengths have equally many, else its windows. Raises InputError for an
    unknown mode, a length below 2, a length that doesn't divide the tokens of an update, and a budget of less than one
    update.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if length < 2:
        raise InputError(f"a length must be at least 2, so that there is a token to predict, got {length}")
    if per_update < 1:
        raise InputError(f"per_update must be at least 1, got {per_update}")
    windows = per_update
    if mode == "equal_tokens_per_update":
        if per_update % length:
            raise InputError(f"an update of {per_update} tokens can't be cut into windows of {length}; give a multiple")
        windows = per_update // length
    updates = token_budget // (length * windows)
    if updates < 1:
        raise InputError(f"a budget of {token_budget} tokens is less than one update of {windows} × {length} tokens")
    return Arrangement(length, windows, updates)


def count_windows(stream: Stream, length: int) -> int:
    """How many windows a stream has; what is left over at its end, less than a window, is never read.

    Raises InputError where there is none.
    """
    count = len(stream) // length
    if count < 1:
        raise InputError(
            f"the data has {len(stream)} tokens, but one window needs {length}; give more or a shorter one"
        )
    return count


def window_batches(stream: Stream, length: int, windows: int, seed: int = 0) -> Iterator[Int[Tensor, "windows length"]]:
    """Endless batches of a stream's windows in one random order, which begins again when all have been read."""
    count = count_windows(stream, length)
    order = np.random.default_rng(seed).permutation(count)

    def batches() -> Iterator[Tensor]:
        begin = 0
        while True:
            chosen = order[np.arange(begin, begin + windows) % count].tolist()
            yield torch.stack([stream.cut(i * length, (i + 1) * length) for i in chosen])
            begin = (begin + windows) % count

    return batches()


@dataclass(frozen=True)
class LengthRow:
    """What training at one length took, and the scores that it gave. seconds: of training."""

    arrangement: Arrangement
    seconds: float
    scores: Mapping[str, float]

    @property
    def length(self) -> int:
        """The tokens of a training window."""
        return self.arrangement.length


@dataclass(frozen=True)
class LengthTable:
    """A row for each length, shortest first. losses: the scores of which less is better."""

    rows: tuple[LengthRow, ...]
    losses: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(sorted(self.rows, key=lambda row: row.length)))

    def tasks(self) -> list[str]:
        """The scores that every row has."""
        return [name for name in self.rows[0].scores if all(name in row.scores for row in self.rows)]

    def row(self, length: int) -> LengthRow:
        """The row of a length that the table has."""
        return next(row for row in self.rows if row.length == length)

    def best(self, task: str) -> LengthRow:
        """The row with the best score; of equal ones the shortest."""
        return max(self.rows, key=lambda row: self.sign(task) * row.scores[task])

    def shortfall(self, task: str, row: LengthRow) -> float:
        """How much worse than the best a row is, 0 for the best."""
        return self.sign(task) * (self.best(task).scores[task] - row.scores[task])

    def sign(self, task: str) -> int:
        """1 where more is better, else -1."""
        return -1 if task in self.losses else 1

    def relative_seconds(self, row: LengthRow) -> float:
        """Seconds of training over those of the longest."""
        return row.seconds / self.rows[-1].seconds


@dataclass(frozen=True)
class Recommended:
    """The shortest length within the tolerance of the best, for each task and for all of them.

    overall is the shortest that is within the tolerances of every task; where there is none, `agrees` is False and
    overall is the length whose largest shortfall, in units of the tolerance, is smallest.
    """

    by_task: Mapping[str, int]
    overall: int
    agrees: bool


def recommend(table: LengthTable, tolerance: float | Mapping[str, float] = 0.01) -> Recommended:
    """The lengths to train at. tolerance: in the units of the scores, one for all or one for each task.

    Raises InputError for an empty table, and for a tolerance that is missing or negative.
    """
    tasks = table.tasks() if table.rows else []
    if not tasks:
        raise InputError("there is nothing to recommend from: no task has a score at every length")
    limits = tolerance if isinstance(tolerance, Mapping) else dict.fromkeys(tasks, tolerance)
    missing = [task for task in tasks if not limits.get(task, -1) >= 0]
    if missing:
        raise InputError(f"every task needs a tolerance of at least 0, got {limits.get(missing[0])} for {missing[0]}")
    enough = {t: [r.length for r in table.rows if table.shortfall(t, r) <= limits[t]] for t in tasks}
    shared = set.intersection(*(set(lengths) for lengths in enough.values()))

    def worst(row: LengthRow) -> float:
        return max(table.shortfall(t, row) / max(limits[t], 1e-12) for t in tasks)

    overall = min(shared) if shared else min(table.rows, key=worst).length
    return Recommended({task: min(lengths) for task, lengths in enough.items()}, overall, bool(shared))


def length_sweep(
    model_fn: Callable[[int], nn.Module],
    stream: Stream,
    lengths: Sequence[int],
    token_budget: int,
    tasks: Mapping[str, Score],
    mode: str = "equal_tokens_per_update",
    *,
    per_update: int,
    losses: Iterable[str] = (),
    learning_rate: float = 1e-3,
    warmup: int = 50,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
    **settings: Any,
) -> LengthTable:
    """Train a model at each length under one budget of tokens, and score each.

    model_fn: gives a fresh model for a length; it is called with the same seed for each. tasks: `task(model, length)`
    is a score of the trained model, in evaluation mode, that may be given `length` tokens at once: learned positions
    beyond them were never trained. losses: the tasks whose score is better the smaller it is. per_update: as in
    `arrange`. warmup: updates, at most those that there are. settings: further ones of `fit`. on_step: called with the
    length, the number of the update and its loss.

    Raises InputError where a length can't be had, before anything is trained.
    """
    if len(set(lengths)) < len(lengths) or not lengths:
        raise InputError(f"lengths must be different ones, at least one, got {list(lengths)}")
    plan = [arrange(length, token_budget, per_update=per_update, mode=mode) for length in sorted(lengths)]
    count_windows(stream, max(lengths))
    rows = []
    for at in plan:
        torch.manual_seed(seed)
        model = model_fn(at.length)
        begin = time.perf_counter()
        fit(
            model,
            window_batches(stream, at.length, at.windows, seed),
            steps=at.updates,
            learning_rate=learning_rate,
            warmup=min(warmup, at.updates),
            on_step=None if on_step is None else partial(on_step, at.length),
            **settings,
        )
        seconds = time.perf_counter() - begin
        model.eval()
        rows.append(LengthRow(at, seconds, {name: float(task(model, at.length)) for name, task in tasks.items()}))
    return LengthTable(tuple(rows), frozenset(losses))
