"""Running a comparison: train and score every candidate with every seed, then measure what they cost."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from lengthwise.comparison.costs import Allowance, Pool, long_text, measure_decoding, measure_memory, memory_lengths
from lengthwise.comparison.plan import Plan, remaining
from lengthwise.comparison.progress import Timeline
from lengthwise.comparison.scoring import score
from lengthwise.comparison.shares import Progress, Share, train, warm_up
from lengthwise.errors import InputError
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.loading import load
from lengthwise.reports.numbers import show_bits, show_count
from lengthwise.reports.records import Candidate, Finished, Measurement, RecordFile, Skipped, TrainingPoint
from lengthwise.training.device import autocast
from lengthwise.training.failure import Diverged

SCORING, MEMORY, DECODING = 0.4, 0.15, 0.45
"""How the time for measuring is divided."""

FORESEEN = 0.65
"""The share of a phase that may be planned for; the rest is for decoding and for what takes longer than expected."""


class Comparison:
    """A plan, the file its results go to, and the folder its trained models go to."""

    def __init__(self, plan: Plan, records: RecordFile, folder: Path, timeline: Timeline):
        self.plan, self.records, self.folder, self.timeline = plan, records, folder, timeline
        self.options = plan.options

    def run(self) -> None:
        """Train and score what isn't yet, then measure costs. Whatever is measured is on the disk at once."""
        share = self.shares()
        for candidate, seed in remaining(self.records.results, self.plan):
            self.train_and_score(candidate, seed, share)
        if not any(f.stage == "costs" for f in self.records.results.finished):
            self.measure_costs()

    def context(self) -> AbstractContextManager:
        """The arithmetic that the options ask for."""
        return autocast(torch.device("cpu"), self.options.precision)

    def build(self, candidate: Candidate, seed: int) -> LanguageModel:
        """A candidate with fresh weights."""
        torch.manual_seed(seed)
        return LanguageModel(
            vocab_size=self.plan.train.vocab_size,
            dim=candidate.dim,
            layers=candidate.layers,
            position=self.options.position,
        )

    def batches(self, seed: int):
        """The batches of a seed, the same for every candidate."""
        return self.plan.train.batches(self.options.length, self.options.batch, seed)

    def shares(self) -> Share:
        """What each candidate may spend with each seed. Equal tokens: as many as fit in the budget."""
        if self.options.equal == "seconds":
            return Share(seconds=self.plan.seconds)
        stored = self.records.results.value("", "share_tokens")
        if stored is None:
            batch = next(self.batches(0))
            seconds = 0.0
            for candidate in self.plan.candidates:
                self.timeline.tell(f"timing {candidate.name}")
                seconds += warm_up(self.build(candidate, 0), batch, self.context)
            # half a step's worth of optimiser and clipping comes on top of forward and backward
            steps = self.plan.seconds * len(self.plan.candidates) / (1.15 * seconds)
            tokens = max(1, int(steps)) * self.options.batch * self.options.length
            stored_tokens = Measurement("", 0, "share_tokens", float(tokens))
            self.records.write(stored_tokens)
            return Share(tokens=tokens)
        return Share(tokens=int(stored.value))

    def train_and_score(self, candidate: Candidate, seed: int, share: Share) -> None:
        """One candidate with one seed: trained, saved, scored on held-out text."""
        name = candidate.name
        self.timeline.begin(f"preparing {name}", self.plan.seconds)
        model = self.build(candidate, seed)
        batches = self.batches(seed)
        warm_up(model, next(self.batches(seed)), self.context, repeats=2)
        per_token = 1.4426950408889634 / self.plan.train.bytes_per_token

        def on_progress(now: Progress) -> None:
            point = TrainingPoint(name, seed, round(now.seconds, 3), now.tokens, round(now.loss * per_token, 4))
            self.records.write(point)
            self.timeline.tell(f"training {name}: {show_bits(point.bits)} bits per byte", now.fraction)

        try:
            rate = train(
                model,
                batches,
                share,
                learning_rate=self.options.learning_rate,
                context=self.context,
                on_progress=on_progress,
            )
            self.save(model, candidate, seed)
            self.score(model, candidate, seed, rate)
        except Diverged as error:
            self.records.write(Skipped(name, "bits_per_byte", None, str(error)))
            self.timeline.say(f"{name}, seed {seed}: {error}")
        self.records.write(Finished(name, seed, "training"))

    def score(self, model: LanguageModel, candidate: Candidate, seed: int, rate: float) -> None:
        """Every measurement of quality, written together so that a stop leaves whole candidates."""
        name = candidate.name
        seconds = SCORING * self.plan.measuring / (len(self.plan.candidates) * len(self.options.seeds))
        self.timeline.begin(f"scoring {name} on held-out text", seconds)
        self.records.write(Measurement(name, seed, "train_rate", rate))
        measured = list(score(model, self.plan.text, name, seed, seconds=seconds, context=self.context))
        for measurement in measured:
            self.records.write(measurement)
        bits = measured[0]
        self.timeline.say(
            f"{name}{f', seed {seed}' if len(self.options.seeds) > 1 else ''}: {show_bits(bits.value)} bits per byte, "
            f"{show_count(rate)} training tokens/s"
        )

    def place(self, candidate: Candidate, seed: int) -> Path:
        """The folder of a trained model."""
        index = [c.name for c in self.plan.candidates].index(candidate.name)
        slug = re.sub(r"[^a-z0-9]+", "-", candidate.name.lower()).strip("-")[:40]
        return self.folder / "models" / f"{index + 1}-{slug}-seed-{seed}"

    def save(self, model: LanguageModel, candidate: Candidate, seed: int) -> None:
        """Keep a trained model, to generate from and to go on with."""
        try:
            model.save(self.place(candidate, seed))
            if self.options.tokenizer is not None:
                shutil.copyfile(self.options.tokenizer, self.place(candidate, seed) / "tokenizer.json")
        except OSError as error:
            raise InputError(
                f"the model of {candidate.name} can't be written to {self.folder} ({error}); make room and go on with "
                "--resume"
            ) from None

    def trained(self) -> Mapping[str, LanguageModel]:
        """The models of the first seed, in evaluation mode."""
        seed = self.options.seeds[0]
        places = {c.name: self.place(c, seed) for c in self.plan.candidates}
        return {name: load(place) for name, place in places.items() if place.exists()}

    def measure_costs(self) -> None:
        """Memory, then reading and decoding, as far as time and memory allow."""
        models = self.trained()
        if not models:
            return
        text = self.plan.held_out.cut(0, min(len(self.plan.held_out), max(self.options.decode_lengths, default=1)))
        phases = (
            ("measuring memory", MEMORY, measure_memory, memory_lengths(self.options.length)),
            ("measuring decoding", DECODING, measure_decoding, list(self.options.decode_lengths)),
        )
        for title, part, measure, lengths in phases:
            if not lengths:
                continue
            seconds = part * self.plan.measuring
            self.timeline.begin(title, seconds)
            pool = Pool(FORESEEN * seconds, len(models))
            allowances = {
                name: Allowance(pool, self.plan.memory, model.stack.growth == "linear")
                for name, model in models.items()
            }
            for record in measure(models, long_text(text, max(lengths) + 1), lengths, allowances, self.timeline.tell):
                self.records.write(record)
        self.records.write(Finished("", 0, "costs"))
