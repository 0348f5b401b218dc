"""Running a study: train every model that isn't yet, and measure each as it is and stretched."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from pathlib import Path

import torch

from lengthwise.comparison.progress import Timeline
from lengthwise.comparison.shares import Batches, Progress, Share, train, warm_up
from lengthwise.conversion import load
from lengthwise.errors import InputError
from lengthwise.extrapolation.finished import MEASURED, TRAINED, failed
from lengthwise.extrapolation.keys import with_keys
from lengthwise.extrapolation.plan import Plan
from lengthwise.extrapolation.scoring import measure
from lengthwise.extrapolation.series import Series
from lengthwise.extrapolation.subjects import Subject
from lengthwise.models.language_model import LanguageModel
from lengthwise.reports.numbers import show_bits, show_length
from lengthwise.reports.records import Finished, Measurement, RecordFile, Skipped, TrainingPoint
from lengthwise.systems.experiments import initialise_by_width
from lengthwise.training.failure import Diverged

READING = 0.8
"""Time to read a token of a long window, in that of a token of a training step."""


class Extrapolation:
    """A plan, the file its results go to, and the folder its trained models go to."""

    def __init__(self, plan: Plan, records: RecordFile, folder: Path, timeline: Timeline):
        self.plan, self.records, self.folder, self.timeline = plan, records, folder, timeline
        self.options, self.done = plan.options, set(records.results.finished)

    def run(self) -> None:
        """Whatever isn't finished. What is measured is on the disk at once."""
        step = self.foresee()
        for seed in self.options.seeds:
            for subject in self.plan.subjects:
                left = [how for how in subject.scalings if not self.measured(subject, how, seed)]
                if not left:
                    continue
                model = self.ready(subject, seed, step)
                if model is not None:
                    for how in left:
                        self.measure(model, subject, how, seed, step)

    def measured(self, subject: Subject, how: str, seed: int) -> bool:
        """Whether a series is finished with one seed."""
        return Finished(Series(subject.name, how).name, seed, MEASURED) in self.done

    def foresee(self) -> float:
        """Seconds of a training step of the first model that is left, and how long all of it should take by that."""
        each = [(subject, seed) for subject in self.plan.subjects for seed in self.options.seeds]
        models = sum(self.untrained(subject, seed) for subject, seed in each)
        series = sum(not self.measured(subject, how, seed) for subject, seed in each for how in subject.scalings)
        self.timeline.tell("timing a step")
        first = self.plan.subjects[0]
        step = self.time_step(self.fresh(first, 0) if first.checkpoint is None else load(first.checkpoint))
        self.timeline.plan(models * self.training_seconds(step) + series * self.measuring_seconds(step))
        return step

    def time_step(self, model: LanguageModel) -> float:
        """Seconds of a training step."""
        return warm_up(model, self.plan.windows[: self.options.batch, : self.plan.grid.trained + 1], nullcontext, 2)

    def training_seconds(self, step: float) -> float:
        """Seconds that a model's training should take."""
        return self.options.seconds or 1.1 * step * (self.options.steps or 0)

    def measuring_seconds(self, step: float) -> float:
        """Seconds that measuring a series should take."""
        read = len(self.plan.windows) * self.plan.grid.tokens * (1 if self.plan.keys else 2)
        return READING * read * step / (self.options.batch * self.plan.grid.trained)

    def untrained(self, subject: Subject, seed: int) -> bool:
        """Whether a model has still to be trained with a seed."""
        return subject.checkpoint is None and Finished(subject.name, seed, TRAINED) not in self.done

    def ready(self, subject: Subject, seed: int, step: float) -> LanguageModel | None:
        """The trained model: loaded, or trained now. None where its training failed."""
        if subject.checkpoint is not None:
            return load(subject.checkpoint)
        if self.untrained(subject, seed):
            return self.train(subject, seed, step)
        return None if failed(self.records.results, subject.name, seed) else load(self.place(subject, seed))

    def fresh(self, subject: Subject, seed: int) -> LanguageModel:
        """A model before training. Parameters of its position don't shift the draws of what all models share."""
        torch.manual_seed(seed)
        model = subject.build(self.options)
        torch.manual_seed(seed)
        initialise_by_width(model)
        return model

    def batches(self, seed: int) -> Batches:
        """The batches of a seed, the same for every model."""
        text = self.plan.train.batches(self.plan.grid.trained, self.options.batch, seed)
        return with_keys(text, self.options.keys, seed) if self.plan.keys else text

    def train(self, subject: Subject, seed: int, step: float) -> LanguageModel | None:
        """One model with one seed, trained and saved."""
        name = subject.name
        self.timeline.begin(f"training {name}", self.training_seconds(step))
        model = self.fresh(subject, seed)

        def on_progress(now: Progress) -> None:
            bits = round(now.loss / math.log(2), 4)
            self.records.write(TrainingPoint(name, seed, round(now.seconds, 3), now.tokens, bits))
            self.timeline.tell(f"training {name}: {show_bits(bits)} bits per byte", now.fraction)

        tokens = (self.options.steps or 0) * self.options.batch * self.plan.grid.trained
        try:
            rate = train(
                model,
                self.batches(seed),
                Share(self.options.seconds, tokens or None),
                learning_rate=self.options.learning_rate,
                context=nullcontext,
                on_progress=on_progress,
            )
            self.save(model, subject, seed)
            self.records.write(Measurement(name, seed, "train_rate", rate))
        except Diverged as error:
            self.records.write(Skipped(name, "bits_at_length", None, str(error)))
            self.timeline.say(f"{name}, seed {seed}: {error}")
            self.records.write(Finished(name, seed, TRAINED))
            return None
        self.records.write(Finished(name, seed, TRAINED))
        return model

    def measure(self, model: LanguageModel, subject: Subject, how: str, seed: int, step: float) -> None:
        """One series with one seed."""
        series, grid = Series(subject.name, how), self.plan.grid
        self.timeline.begin(f"measuring {series.name}", self.measuring_seconds(step))
        found = measure(
            model,
            self.plan.windows,
            grid,
            name=series.name,
            scaling=how,
            seed=seed,
            keys=self.plan.keys,
            told=lambda fraction: self.timeline.tell(f"measuring {series.name}", fraction),
        )
        ends = {}
        for record in found:
            self.records.write(record)
            if isinstance(record, Measurement) and record.measure == "bits_at_length" and record.at is not None:
                ends[record.at] = record.value
        self.records.write(Finished(series.name, seed, MEASURED))
        shown = sorted({min(ends), max(ends)}) if ends else []
        said = ", ".join(f"{show_bits(ends[at])} at {show_length(at)}" for at in shown)
        several = f", seed {seed}" if len(self.options.seeds) > 1 else ""
        self.timeline.say(f"{series.name}{several}: {said + ' bits per byte' if said else 'its losses are no numbers'}")

    def place(self, subject: Subject, seed: int) -> Path:
        """The folder of a trained model."""
        index = self.plan.subjects.index(subject) + 1
        slug = re.sub(r"[^a-z0-9]+", "-", subject.name.lower()).strip("-")[:40]
        return self.folder / "models" / f"{index}-{slug}-seed-{seed}"

    def save(self, model: LanguageModel, subject: Subject, seed: int) -> None:
        """Keep a trained model, to measure again and to go on with."""
        try:
            model.save(self.place(subject, seed))
        except OSError as error:
            raise InputError(
                f"the model of {subject.name} can't be written to {self.folder} ({error}); make room and go on with "
                "--resume"
            ) from None
