"""The experiment on a cue in noise that several systems share: equal everything but the layers.

Width 64, LayerNorm, learned positions, batches of 32 unless said, AdamW at a constant learning rate of 1e-3 with weight
decay 0.01, gradients clipped to 1; the loss is at the one place where the cue is asked for. All linear maps and
embeddings begin as N(0, 1/√64), whatever the layers choose for themselves: from smaller ones a cue, one of hundreds of
tokens in an average, isn't noticed in so few steps. Accuracy on 512 fresh sequences.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch

from lengthwise.mixers.longformer import Longformer
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.experiments import OnStep, Reader, initialise, progress
from lengthwise.systems.system import Run
from lengthwise.tasks.cue import Cue
from lengthwise.training.fit import fit

DIM, BATCH, EXAMPLES = 64, 32, 512


def build(layers: str, task: Cue) -> LanguageModel | Reader:
    """A model of the task's tokens: an encoder where the cue is asked for at the first."""
    position = f"learned(length={task.length})"
    model: LanguageModel | Reader
    if task.answered == "first":
        model = Reader(task.vocab_size, DIM, layers, position)
    else:
        model = LanguageModel(task.vocab_size, DIM, layers, position=position, norm="layernorm")
    initialise(model, DIM**-0.5)
    for part in model.modules():
        if isinstance(part, Longformer):
            part.copy_projections()
    return model


def accuracy(
    layers: str, task: Cue, seed: int, *, steps: int, batch: int = BATCH, on_step: OnStep | None = None
) -> float:
    """Share of fresh sequences whose cue a trained model names."""
    torch.manual_seed(seed)
    model = build(layers, task)
    batches = task.batches(batch, seed=seed)
    fit(
        model,
        batches,
        steps=steps,
        learning_rate=1e-3,
        warmup=0,
        weight_decay=0.01,
        betas=(0.9, 0.999),
        final=1.0,
        loss=task.objective,
        on_step=on_step,
    )
    return statistics.fmean(
        task.score(model.eval(), examples=EXAMPLES // 8, seed=1_000_003 + part) for part in range(8)
    )


def medians(
    run: Run,
    jobs: Mapping[str, tuple[str, Sequence[int]]],
    task: Cue,
    *,
    steps: int,
    batch: int = BATCH,
    share: float = 1.0,
) -> dict[str, float]:
    """For each name the median accuracy of its layers over its seeds. share: the part of the run that this is."""
    total = steps * sum(len(seeds) for _, seeds in jobs.values())
    on_step = progress(Run(run.seeds, lambda text, fraction: run.progress(text, share * fraction)), total)
    return {
        name: statistics.median(
            accuracy(layers, task, seed, steps=steps, batch=batch, on_step=on_step(f"{name}, seed {seed}"))
            for seed in seeds
        )
        for name, (layers, seeds) in jobs.items()
    }
