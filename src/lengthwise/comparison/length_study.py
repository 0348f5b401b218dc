"""The study of training lengths: understood and checked, then every model trained and scored at every length."""

from __future__ import annotations

import datetime
import math
import re
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lengthwise.comparison.candidates import Contender, contenders
from lengthwise.comparison.length_scoring import LengthText, length_text, score_length
from lengthwise.comparison.plan import check_seeds
from lengthwise.comparison.progress import Timeline
from lengthwise.comparison.shares import Progress, Share, train, warm_up
from lengthwise.comparison.width import parameters, solve_all
from lengthwise.errors import InputError
from lengthwise.machine import machine, versions
from lengthwise.models.build import build_position
from lengthwise.models.language_model import LanguageModel
from lengthwise.options.lengths import LengthsOptions
from lengthwise.options.stored import as_json, command_line
from lengthwise.reports.numbers import parse_count, parse_duration, show_bits, show_seconds
from lengthwise.reports.records import Candidate, Finished, Measurement, RecordFile, Settings, Skipped, TrainingPoint
from lengthwise.tasks.corpus import Corpus, read, standard_library
from lengthwise.training.device import autocast
from lengthwise.training.failure import Diverged
from lengthwise.training.lengths import Arrangement, arrange, window_batches

SHORTEST = 16
"""The least length: half of a window is context, and half is scored."""

TOKENS = "500k"
"""The budget of a run where none is given, by which the default study ends within about four minutes."""

OPTIMISER = 1.15
"""A whole update over its forward and backward pass, about."""

FORWARD = 0.4
"""Reading a token to score it over training on it, about."""

ENDLESS = 1 << 60
DEFAULT = (Contender("Transformer", "3*(attention + swiglu)"), Contender("Mamba", "6*mamba"))


@dataclass(frozen=True)
class LengthPlan:
    """A study ready to run. seconds: of training of each run, or None where it has a number of updates."""

    options: LengthsOptions
    train: Corpus
    text: LengthText
    models: tuple[Candidate, ...]
    arrangements: tuple[Arrangement, ...]
    seconds: float | None

    def share(self, at: Arrangement) -> Share:
        """What one run may spend: seconds, or the tokens that its updates predict."""
        return Share(seconds=self.seconds) if self.seconds else Share(tokens=at.updates * predicted(at))

    @property
    def candidates(self) -> list[Candidate]:
        """Every model at every length, as records have them."""
        return [replace(m, name=trained_at(m.name, at.length)) for m in self.models for at in self.arrangements]

    @property
    def settings(self) -> Settings:
        """Everything needed to run this again."""
        data = {
            "name": ", ".join(self.options.data) or "Python's standard library",
            "train_tokens": len(self.train),
            "train_files": len(self.train.documents),
            "bytes_per_token": round(self.train.bytes_per_token, 4),
            "passages": len(self.text.passages),
            "scored_tokens_of_a_passage": self.text.target,
            "left_out": list(self.train.notes[:20]),
        }
        budget = f"{show_seconds(self.seconds)} of training" if self.seconds else f"{self.options.tokens} tokens"
        recipe = {
            "optimiser": "AdamW, betas 0.9 and 0.95, weight decay 0.1 on matrices, gradient norm clipped to 1",
            "schedule": "linear warm-up over 5 % of the budget, cosine to a tenth",
            "training": f"{budget} for each model, length and seed",
            "windows": "not overlapping, shuffled once, across the borders of documents",
        }
        return Settings(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=command_line(self.options, "lengths"),
            options=as_json(self.options),
            data=data,
            recipe=recipe,
            machine={**machine(), **versions()},
        )


def trained_at(name: str, length: int) -> str:
    """How records call a model that was trained at one length."""
    return f"{name} @ {length}"


def model_and_length(key: str) -> tuple[str, int]:
    """The model and the length that a record belongs to."""
    name, _, length = key.rpartition(" @ ")
    return name, int(length)


def predicted(at: Arrangement) -> int:
    """Tokens that an update predicts: all but the first of each window."""
    return at.windows * (at.length - 1)


def make_length_plan(options: LengthsOptions) -> LengthPlan:
    """Check the options, read the data, solve the widths and let every model read once, as when it is scored.

    The plan's options hold the budget that these leave open. Raises InputError for whatever can't work.
    """
    check_options(options)
    seconds = parse_duration(options.seconds) if options.seconds else None
    if seconds is None:
        options = replace(options, tokens=options.tokens or TOKENS)
    budget = ENDLESS if seconds else parse_count(options.tokens or TOKENS)
    mode = f"equal_{options.mode}_per_update"
    per_update = options.update_tokens if options.mode == "tokens" else options.update_windows
    arranged = [arrange(n, budget, per_update=per_update, mode=mode) for n in sorted(options.lengths)]
    named = contenders(options.layers, ()) if options.layers else list(DEFAULT)
    corpus = read(options.data, options.tokenizer) if options.data else standard_library(packages=True)
    train_text, held_out = corpus.split()
    train_text.require(max(options.lengths))
    text = length_text(held_out, options.lengths, options.pairs)
    widths = solve_all(named, parse_count(options.parameters), corpus.vocab_size, options.position)
    models = tuple(
        Candidate(model.name, layers, dim, parameters(layers, dim, corpus.vocab_size, options.position))
        for model, (layers, dim) in zip(named, widths, strict=True)
    )
    plan = LengthPlan(options, train_text, text, models, tuple(arranged), seconds)
    for model in models:
        with torch.no_grad():
            build(plan, model, 0).eval()(text.passages[:1, :-1])
    return plan


def check_options(options: LengthsOptions) -> None:
    """Raise InputError for what no run can have."""
    lengths = options.lengths
    if len(set(lengths)) < 2 or len(set(lengths)) < len(lengths) or min(lengths) < SHORTEST:
        raise InputError(f"--lengths must be at least two different ones from {SHORTEST} on, got {list(lengths)}")
    if options.tokens is not None and options.seconds is not None:
        raise InputError("give --tokens or --seconds, not both: a run ends with one of them")
    for name in ("update_tokens", "update_windows"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    if not options.tolerance >= 0:
        raise InputError(f"--tolerance must be at least 0, got {options.tolerance}")
    if not options.learning_rate > 0:
        raise InputError(f"--learning-rate must be greater than 0, got {options.learning_rate}")
    check_seeds(options.seeds)
    build_position(options.position, 64)


def build(plan: LengthPlan, candidate: Candidate, seed: int) -> LanguageModel:
    """A model with fresh weights, the same at every length."""
    torch.manual_seed(seed)
    return LanguageModel(
        vocab_size=plan.train.vocab_size,
        dim=candidate.dim,
        layers=candidate.layers,
        position=plan.options.position,
    )


Job = tuple[Candidate, Arrangement, int]
"""A model, how its budget is spent at one length, and a seed."""


class LengthStudy:
    """A plan, the file its results go to, and the folder its trained models go to."""

    def __init__(self, plan: LengthPlan, records: RecordFile, folder: Path, timeline: Timeline):
        self.plan, self.records, self.folder, self.timeline = plan, records, folder, timeline

    def run(self) -> None:
        """Train and score what isn't yet. Whatever is measured is on the disk at once."""
        jobs = self.remaining()
        pairs = dict.fromkeys((candidate, at) for candidate, at, _ in jobs)
        planned = {pair: self.expected(pair[1], self.step_seconds(*pair)) for pair in pairs}
        self.timeline.plan(sum(sum(planned[candidate, at]) for candidate, at, _ in jobs))
        for candidate, at, seed in jobs:
            self.train_and_score(candidate, at, seed, *planned[candidate, at])

    def remaining(self) -> list[Job]:
        """What is still to be trained."""
        done = {(f.candidate, f.seed) for f in self.records.results.finished}
        return [
            (candidate, at, seed)
            for seed in self.plan.options.seeds
            for candidate in self.plan.models
            for at in self.plan.arrangements
            if (trained_at(candidate.name, at.length), seed) not in done
        ]

    def context(self) -> AbstractContextManager:
        """The arithmetic that the options ask for."""
        return autocast(torch.device("cpu"), self.plan.options.precision)

    def step_seconds(self, candidate: Candidate, at: Arrangement) -> float:
        """Seconds of an update."""
        self.timeline.tell(f"timing {candidate.name} at {at.length}")
        batch = next(window_batches(self.plan.train, at.length, at.windows))
        return OPTIMISER * warm_up(build(self.plan, candidate, 0), batch, self.context)

    def expected(self, at: Arrangement, step: float) -> tuple[float, float]:
        """Seconds that training and scoring will take."""
        scoring = FORWARD * step * self.plan.text.tokens(at.length) / (at.windows * at.length)
        return self.plan.seconds or at.updates * step, scoring

    def train_and_score(
        self, candidate: Candidate, at: Arrangement, seed: int, training: float, scoring: float
    ) -> None:
        """One model at one length with one seed."""
        name, key = candidate.name, trained_at(candidate.name, at.length)
        self.timeline.begin(f"preparing {name} at {at.length}", training)
        model = build(self.plan, candidate, seed)
        per_token = 1 / math.log(2) / self.plan.train.bytes_per_token
        last = Progress(0.0, 0, 0.0, 0.0)

        def on_progress(now: Progress) -> None:
            nonlocal last
            last = now
            point = TrainingPoint(key, seed, round(now.seconds, 3), now.tokens, round(now.loss * per_token, 4))
            self.records.write(point)
            self.timeline.tell(f"training {name} at {at.length}: {show_bits(point.bits)} bits per byte", now.fraction)

        batches = window_batches(self.plan.train, at.length, at.windows, seed)
        rate = self.plan.options.learning_rate
        try:
            train(
                model, batches, self.plan.share(at), learning_rate=rate, context=self.context, on_progress=on_progress
            )
            self.save(model, key, seed)
            self.timeline.begin(f"scoring {name} at {at.length}", scoring)
            self.score(model, key, at, seed, last)
        except Diverged as error:
            self.records.write(Skipped(key, "bits_long", None, str(error)))
            self.timeline.say(f"{key}, seed {seed}: {error}")
        self.records.write(Finished(key, seed, "length"))

    def score(self, model: LanguageModel, key: str, at: Arrangement, seed: int, last: Progress) -> None:
        """Every measurement of a run, written together so that a stop leaves whole runs."""
        try:
            measured = list(score_length(model, self.plan.text, key, at.length, seed, self.context))
        except InputError as error:
            raise Diverged(str(error)) from None
        updates = last.tokens // predicted(at)
        for measure, value in (("run_seconds", last.seconds), ("updates", updates), ("windows", at.windows)):
            measured.append(Measurement(key, seed, measure, float(value)))
        for record in measured:
            self.records.write(record)
        bits = next(m for m in measured if m.measure == "bits_long")
        self.timeline.say(
            f"{key}{f', seed {seed}' if len(self.plan.options.seeds) > 1 else ''}: "
            f"{show_bits(bits.value)} bits per byte, {updates:,} updates in {show_seconds(last.seconds)}"
        )

    def save(self, model: LanguageModel, key: str, seed: int) -> None:
        """Keep a trained model, to generate from and to go on with."""
        name, length = model_and_length(key)
        number = [m.name for m in self.plan.models].index(name) + 1
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
        place = self.folder / "models" / f"{number}-{slug}-{length}-seed-{seed}"
        try:
            model.save(place)
            if self.plan.options.tokenizer is not None:
                shutil.copyfile(self.plan.options.tokenizer, place / "tokenizer.json")
        except OSError as error:
            raise InputError(
                f"the model of {key} can't be written to {self.folder} ({error}); make room and go on with --resume"
            ) from None
