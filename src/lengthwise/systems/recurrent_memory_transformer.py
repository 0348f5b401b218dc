"""Recurrent Memory Transformer: what a few memory vectors carry over segments that a cache doesn't reach."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from torch import nn

from lengthwise.models.language_model import LanguageModel
from lengthwise.models.recurrent_memory import RecurrentMemory
from lengthwise.systems.experiments import initialise, progress
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds
from lengthwise.tasks.copying import DelayedCopying
from lengthwise.training.fit import fit

SYSTEM = System(
    key="recurrent-memory-transformer",
    title="Recurrent Memory Transformer",
    arxiv="2207.06881",
    parts=["models.recurrent_memory", "models.cache_previous", "mixers.segments", "tasks.delayed_copying"],
    claim="memory vectors, read before each segment and written behind it, carry what a cache of the last one loses",
    expression="recurrent_memory(12*(attention + mlp), tokens=10, segment=512, backprop=4)",
)

SEGMENT, MEMORY, DIM = 8, 8, 64
TASK = DelayedCopying(length=4 * SEGMENT, memory=SEGMENT, symbols=8, noise=8)
"""Symbols in the first segment, noise in two more, prompts in the fourth."""

BATCH, STEPS, EXAMPLES, STD = 64, 500, 512, 0.02

LAYERS = "2*(attention(heads=4) + mlp)"


def with_memory(tokens: int, backprop: str = "none") -> str:
    """The layers in segments, with so many memory vectors and positions that begin anew with each."""
    position = f"learned(length={SEGMENT + 2 * tokens})"
    return f"recurrent_memory({LAYERS}, tokens={tokens}, segment={SEGMENT}, backprop={backprop}, position={position})"


VARIANTS = {
    "memory": (with_memory(MEMORY), "none"),
    "no memory": (with_memory(0), "none"),
    "cache": (f"cache_previous({LAYERS}, segment={SEGMENT})", f"learned(length={TASK.length})"),
    "one segment": (with_memory(MEMORY, backprop="1"), "none"),
}
"""Layers and the position that the model adds. A cache needs positions that go on from segment to segment."""


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Delayed copying over four segments of 8 tokens, against the same two layers without memory, with a cache of the
    segment before, and with memory whose gradient ends at each segment.

    Width 64, 4 heads, LayerNorm, learned positions, weights and memory from N(0, 0.02); 500 steps of AdamW at a
    constant 1e-3, with weight decay 0.01, on batches of 64, gradients clipped to 1. Two layers with a cache reach two
    segments back, and the symbols are three back. Accuracy is the share of symbols that are right on 512 fresh
    sequences, of which 1/8 is chance.
    """
    on_step = progress(run, len(run.seeds) * len(VARIANTS) * STEPS)
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for seed in run.seeds:
        for name in VARIANTS:
            found[name].append(accuracy(name, seed, on_step(f"{name}, seed {seed}")))
    middle = {name: statistics.median(values) for name, values in found.items()}
    seeds = of_seeds(run.seeds)
    ours = middle["memory"]
    notes = {name: ", ".join(f"{value:.3f}" for value in values) for name, values in found.items()}
    yield at_least(
        f"accuracy with {MEMORY} memory vectors ({seeds})", ours, 0.90, "near 100% over many segments", notes["memory"]
    )
    yield at_most(f"accuracy without memory ({seeds})", middle["no memory"], 0.20, note=notes["no memory"])
    yield at_most(
        f"accuracy with a cache of one segment ({seeds})", middle["cache"], 0.25, "falls off", note=notes["cache"]
    )
    yield at_most(
        f"accuracy with gradients through one segment alone, over that through all ({seeds})",
        middle["one segment"] / ours,
        0.5,
        note=notes["one segment"],
    )


def build(name: str) -> LanguageModel:
    """The model of a variant; its memory begins like its embeddings."""
    layers, position = VARIANTS[name]
    model = LanguageModel(TASK.vocab_size, DIM, layers, position=position, norm="layernorm")
    initialise(model, STD)
    for module in model.modules():
        if isinstance(module, RecurrentMemory) and module.memory is not None:
            nn.init.normal_(module.memory, std=STD)
    return model


def accuracy(
    name: str, seed: int, on_step: Callable[[int, float], None] | None = None, steps: int | None = None
) -> float:
    """Share of the symbols that a variant gets right after training."""
    torch.manual_seed(seed)
    model = build(name)
    fit(
        model,
        TASK.batches(BATCH, seed=seed),
        steps=steps or STEPS,
        learning_rate=1e-3,
        warmup=0,
        final=1.0,
        weight_decay=0.01,
        loss=TASK.objective,
        on_step=on_step,
    )
    return TASK.score(model.eval(), examples=EXAMPLES)
