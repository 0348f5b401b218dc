"""What a study of lengths is going to do: the options understood, the data read, the models known."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from lengthwise.comparison.plan import check_seeds
from lengthwise.errors import InputError
from lengthwise.extrapolation.scoring import Grid, held_out_windows
from lengthwise.extrapolation.series import Series
from lengthwise.extrapolation.subjects import Subject, subjects_of_checkpoints, subjects_of_positions
from lengthwise.machine import machine, versions
from lengthwise.options.extrapolation import ExtrapolateOptions
from lengthwise.options.stored import as_json, command_line
from lengthwise.positions.stretch import SCALINGS, find_scaling
from lengthwise.reports.numbers import show_seconds
from lengthwise.reports.records import Candidate, Settings
from lengthwise.tasks.corpus import Corpus, read, standard_library

LENGTH, STEPS = 64, 450
"""The trained length and the steps of training where the options don't say."""

EVERY = 10
"""One document in so many is held out, or that share of a single one."""


@dataclass(frozen=True)
class Plan:
    """A study ready to run."""

    options: ExtrapolateOptions
    grid: Grid
    train: Corpus
    held_out: Corpus
    windows: Int[Tensor, "windows n"]
    subjects: tuple[Subject, ...]
    left_out: tuple[str, ...]

    @property
    def keys(self) -> bool:
        """Whether recall is that of keys, which the models learn in training."""
        return self.options.keys > 0 and not self.options.checkpoints

    @property
    def candidates(self) -> list[Candidate]:
        """Every series, in the order of the report."""
        return [
            Candidate(Series(s.name, scaling).name, s.described, s.dim, s.parameters)
            for s in self.subjects
            for scaling in s.scalings
        ]

    @property
    def settings(self) -> Settings:
        """Everything needed to run this again."""
        options = self.options
        data = {
            "name": ", ".join(options.data) or "Python's standard library",
            "train_tokens": len(self.train),
            "train_files": len(self.train.documents),
            "held_out_tokens": len(self.held_out),
            "held_out_files": len(self.held_out.documents),
            "left_out": list(self.train.notes[:20]),
        }
        each = show_seconds(options.seconds) if options.seconds is not None else f"{options.steps} steps"
        trained = {
            "optimiser": "AdamW, betas 0.9 and 0.95, weight decay 0.1 on matrices, gradient norm clipped to 1",
            "schedule": "linear warm-up over 5 % of the training, cosine to a tenth",
            "training": f"{each} for each model and seed, linear maps begun as N(0, 1 / inputs)",
        }
        return Settings(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=command_line(options, "extrapolate"),
            options=as_json(options),
            data=data,
            recipe={} if options.checkpoints else trained,
            machine={**machine(), **versions()},
        )


def make_plan(options: ExtrapolateOptions) -> Plan:
    """Check the options, read the data and look at the models. Raises InputError for whatever can't work.

    The plan's options hold what these leave open.
    """
    check_options(options)
    scalings = list(dict.fromkeys(["none", *options.scalings]))
    if options.checkpoints:
        subjects, trained = subjects_of_checkpoints(options.checkpoints, options.length, scalings)
    else:
        trained = options.length or LENGTH
        steps = STEPS if options.seconds is None and options.steps is None else options.steps
        options = dataclasses.replace(options, steps=steps)
        subjects = subjects_of_positions(options, trained, scalings)
    options = dataclasses.replace(options, length=trained)
    grid = Grid(trained, tuple(sorted({trained * times for times in (1, *options.times)})))
    corpus = read(options.data) if options.data else standard_library(packages=True)
    train, held_out = corpus.split(EVERY)
    windows = held_out_windows(held_out, grid.lengths[-1], options.windows, EVERY)
    if not options.checkpoints:
        train.require(trained)
    unused = [how for how in scalings if not any(how in s.scalings for s in subjects)]
    left_out = tuple(f"{how}: it is for {SCALINGS[how].serves}" for how in unused)
    return Plan(options, grid, train, held_out, windows, tuple(subjects), left_out)


def check_options(options: ExtrapolateOptions) -> None:
    """Raise InputError for options that no run can have."""
    for name in options.scalings:
        find_scaling(name)
    if options.steps is not None and options.seconds is not None:
        raise InputError("give --steps or --seconds, not both")
    for flag, value in (("length", options.length), ("steps", options.steps)):
        least = 16 if flag == "length" else 1
        if value is not None and value < least:
            raise InputError(f"--{flag} must be at least {least}, got {value}")
    for flag, number in (("batch", options.batch), ("dim", options.dim), ("windows", options.windows)):
        if number < 1:
            raise InputError(f"--{flag} must be at least 1, got {number}")
    if options.seconds is not None and not options.seconds > 0:
        raise InputError(f"--seconds must be greater than 0, got {options.seconds}")
    if not options.learning_rate > 0:
        raise InputError(f"--learning-rate must be greater than 0, got {options.learning_rate}")
    if not 0 <= options.keys <= 1:
        raise InputError(f"--keys is a share of the rows, from 0 to 1, got {options.keys}")
    if not options.times or min(options.times) < 1:
        raise InputError(f"--times must be whole multiples from 1 on, got {list(options.times)}")
    check_seeds(options.seeds)
    if options.checkpoints:
        different("checkpoints", [str(Path(path).resolve()) for path in options.checkpoints])
    else:
        different("positions", options.positions)
    if options.checkpoints and len(options.seeds) > 1:
        raise InputError("checkpoints are trained already: they are measured once, without --seeds")


def different(flag: str, values: Sequence[object]) -> None:
    """Raise InputError unless there are values, no two alike."""
    if not values or len(set(values)) < len(values):
        raise InputError(f"--{flag} must be given, each once, got {list(values)}")
