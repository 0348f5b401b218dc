"""What a comparison is going to do: the options understood, the data read, the widths solved."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from lengthwise.comparison.candidates import contenders
from lengthwise.comparison.scoring import HeldOut, held_out_text
from lengthwise.comparison.width import parameters, solve_all
from lengthwise.errors import InputError
from lengthwise.machine import machine, versions
from lengthwise.models.build import build_position
from lengthwise.options.comparison import CompareOptions
from lengthwise.options.stored import as_json, command_line
from lengthwise.reports.numbers import parse_count, parse_duration, parse_size, show_seconds
from lengthwise.reports.records import Candidate, Results, Settings
from lengthwise.tasks.corpus import Corpus, read, standard_library

SHORTEST = 0.5
"""Seconds of training below which a comparison means nothing."""


@dataclass(frozen=True)
class Plan:
    """A comparison ready to run. `seconds`: training of one candidate with one seed; `measuring`: all measurements."""

    options: CompareOptions
    train: Corpus
    text: HeldOut
    held_out: Corpus
    candidates: tuple[Candidate, ...]
    seconds: float
    measuring: float
    memory: int

    @property
    def settings(self) -> Settings:
        """Everything needed to run this again."""
        data = {
            "name": ", ".join(self.options.data) or "Python's standard library",
            "train_tokens": len(self.train),
            "train_files": len(self.train.documents),
            "held_out_tokens": len(self.held_out),
            "held_out_files": len(self.held_out.documents),
            "bytes_per_token": round(self.train.bytes_per_token, 4),
            "left_out": list(self.train.notes[:20]),
        }
        recipe = {
            "optimiser": "AdamW, betas 0.9 and 0.95, weight decay 0.1 on matrices, gradient norm clipped to 1",
            "schedule": "linear warm-up over 5 % of the budget, cosine to a tenth",
            "training": f"{show_seconds(self.seconds)} for each candidate and seed"
            if self.options.equal == "seconds"
            else f"equal tokens, in {self.options.budget} for all",
        }
        return Settings(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=command_line(self.options, "compare", repeated=("layers",)),
            options=as_json(self.options),
            data=data,
            recipe=recipe,
            machine={**machine(), **versions()},
        )


def make_plan(options: CompareOptions) -> Plan:
    """Check the options, read the data and solve the widths. Raises InputError for whatever can't work."""
    budget, measuring = parse_duration(options.budget), parse_duration(options.measuring)
    target, memory = parse_count(options.parameters), parse_size(options.memory)
    check_sizes(options)
    models = contenders(options.layers, options.systems)
    seconds = budget / (len(models) * len(options.seeds))
    if seconds < SHORTEST:
        least = show_seconds(SHORTEST * len(models) * len(options.seeds))
        raise InputError(
            f"a budget of {options.budget} leaves {show_seconds(seconds)} of training for each of {len(models)} "
            f"candidates and {len(options.seeds)} seeds; give at least {least}"
        )
    corpus = read(options.data, options.tokenizer) if options.data else standard_library(packages=True)
    train, held_out = corpus.split()
    train.require(options.length)
    text = held_out_text(held_out, options.length)
    widths = solve_all(models, target, corpus.vocab_size, options.position)
    candidates = tuple(
        Candidate(model.name, layers, dim, parameters(layers, dim, corpus.vocab_size, options.position))
        for model, (layers, dim) in zip(models, widths, strict=True)
    )
    return Plan(options, train, text, held_out, candidates, seconds, measuring, memory)


def check_sizes(options: CompareOptions) -> None:
    """Raise InputError for sizes that no run can have."""
    if options.length < 16:
        raise InputError(f"--length must be at least 16 tokens, got {options.length}")
    if options.batch < 1:
        raise InputError(f"--batch must be at least 1, got {options.batch}")
    if not options.learning_rate > 0:
        raise InputError(f"--learning-rate must be greater than 0, got {options.learning_rate}")
    check_seeds(options.seeds)
    if min(options.decode_lengths, default=1) < 1:
        raise InputError(f"--decode-lengths must be at least 1, got {min(options.decode_lengths)}")
    build_position(options.position, 64)


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise InputError unless there are seeds, each once, that every generator takes."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**63:
        raise InputError(f"--seeds must be different numbers from 0 on, below 2^63, got {list(seeds)}")


def remaining(results: Results, plan: Plan) -> list[tuple[Candidate, int]]:
    """Which candidates are still to be trained, with which seed."""
    done = {(f.candidate, f.seed) for f in results.finished if f.stage == "training"}
    return [(c, seed) for seed in plan.options.seeds for c in plan.candidates if (c.name, seed) not in done]
