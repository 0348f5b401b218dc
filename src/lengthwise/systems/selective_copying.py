"""The selective copying experiment that several systems share: equal everything but the layers.

32 positions of which 4, at random, hold data, then 4 markers at which the data is asked in order. Width 48, LayerNorm,
batches of 32, 1000 steps of AdamW with weight decay 0.01, learning rate 4e-3 after 100 steps of warm-up and then a
cosine to 0, gradients clipped to 1; the loss is at the markers only.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch

from lengthwise.contract import SequenceModule
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.system import Run
from lengthwise.tasks.copying import SelectiveCopying
from lengthwise.training.fit import fit

TASK = SelectiveCopying(length=36, memory=4, vocabulary=16)
DIM = 48
STEPS = 1000


def build(layers: str, parts: Mapping[str, type[SequenceModule]] | None = None) -> LanguageModel:
    """A model of the task's tokens. `parts` adds names to those that an expression knows."""
    return LanguageModel(TASK.vocab_size, DIM, layers, position="none", norm="layernorm", parts=parts)


def accuracy(
    layers: str,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
    *,
    steps: int = STEPS,
    parts: Mapping[str, type[SequenceModule]] | None = None,
) -> float:
    """Share of the markers answered right on 256 fresh sequences after training."""
    torch.manual_seed(seed)
    model = build(layers, parts)
    batches = TASK.batches(32, seed=seed)
    fit(
        model,
        batches,
        steps=steps,
        learning_rate=4e-3,
        warmup=steps // 10,
        weight_decay=0.01,
        final=0.0,
        loss=TASK.objective,
        on_step=on_step,
    )
    return TASK.score(model.eval(), examples=256)


def medians(
    run: Run, variants: Mapping[str, str], parts: Mapping[str, type[SequenceModule]] | None = None
) -> dict[str, float]:
    """For each name the median accuracy of its layers over the run's seeds."""
    jobs = [(seed, name) for seed in run.seeds for name in variants]
    found: dict[str, list[float]] = {name: [] for name in variants}
    for done, (seed, name) in enumerate(jobs):

        def on_step(step: int, loss: float, name: str = name, seed: int = seed, done: int = done) -> None:
            run.progress(f"{name}, seed {seed}: loss {loss:.3f}", (done + (step + 1) / STEPS) / len(jobs))

        found[name].append(accuracy(variants[name], seed, on_step, parts=parts))
    return {name: statistics.median(values) for name, values in found.items()}
