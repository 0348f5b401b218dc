"""MASFormer: full attention in a few layers at the bottom, and blocks in all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lengthwise.models.language_model import LanguageModel
from lengthwise.ops.patterns import blocks, causal
from lengthwise.systems.experiments import OnStep, progress
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported
from lengthwise.tasks.slots import SlotText
from lengthwise.training.fit import fit

SYSTEM = System(
    key="masformer",
    title="Efficient Long-Range Transformers: You Need to Attend More, but Not Necessarily at Every Layer",
    arxiv="2310.12442",
    parts=["mixers.attention", "ops.patterns", "caches.selective", "tasks.slot_text"],
    claim="full attention in a few layers at the bottom and blocks in the others does what full attention in all layers"
    " does, for a fraction of its logits",
    expression="4*(attention(heads=12) + mlp) + 8*(attention(heads=12, pattern=blocks(1024, previous=1)) + mlp)",
    pattern="causal() & blocks(8, previous=1)",
)

TASK = SlotText()
DIM, LAYERS, BLOCK, BATCH = 48, 6, 16, 16
STEPS = 800
FULL = "(attention(heads=4) + mlp)"
NEAR = f"(attention(heads=4, pattern=blocks({BLOCK}, previous=1)) + mlp)"
ARMS = {
    "full": f"{LAYERS}*{FULL}",
    "2 full at the bottom": f"2*{FULL} + {LAYERS - 2}*{NEAR}",
    "blocks alone": f"{LAYERS}*{NEAR}",
}


@dataclass(frozen=True)
class Found:
    """What a trained model does on fresh examples: accuracy at the answers, and nats per token of the noise."""

    accuracy: float
    nats: float


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Slots at the beginning of a language that needs no more than the last token, asked for at its end.

    All models have six layers and are trained on every next token for 800 steps, with the first of the seeds alone, to
    finish in minutes, and without full layers at the top. Twice the steps, for where full attention doesn't learn the
    answers in 800, were not run: a trial with other initial weights had not begun to learn them then either.
    """
    seed = run.seeds[0]
    found = measure(run)
    ours, full = found["2 full at the bottom"], found["full"]
    over = f"seed {seed}, {STEPS} steps"
    yield at_least(f"accuracy with full attention ({over})", full.accuracy, 0.8, note=f"guessing: {TASK.chance:g}")
    yield at_least(
        f"accuracy with 2 full layers of {LAYERS} at the bottom, over that ({over})",
        ours.accuracy / full.accuracy,
        0.9,
        claimed="competitive with full attention",
        note=f"{ours.accuracy:.3f}",
    )
    reach = (causal() & blocks(BLOCK, 1)).receptive_field(LAYERS)
    yield at_most(
        "accuracy with blocks alone", found["blocks alone"].accuracy, 0.25, note=f"six layers reach {reach} tokens"
    )
    apart = abs(ours.nats / full.nats - 1)
    noted = f"{ours.nats:.4f} and {full.nats:.4f}; the noise itself has {TASK.entropy:.4f}"
    yield at_most("nats of the noise with 2 full layers, apart from full attention", apart, 0.02, note=noted)
    yield at_most("logits over those of full attention", entries_share(TASK.length), 0.5, claimed="0.25")
    yield reported("logits at 24 layers, 4 full, blocks of 1024, 8192 tokens", entries_share(8192, 24, 4, 1024))


def measure(run: Run) -> dict[str, Found]:
    """Every arm trained with the first seed."""
    seed, on_step = run.seeds[0], progress(run, len(ARMS) * STEPS)
    return {name: examine(train(layers, seed, STEPS, on_step(f"{name}, seed {seed}"))) for name, layers in ARMS.items()}


def train(layers: str, seed: int, steps: int = STEPS, on_step: OnStep | None = None) -> LanguageModel:
    """A model of the task with these layers, trained."""
    torch.manual_seed(seed)
    model = LanguageModel(TASK.vocab_size, DIM, layers, position=f"learned(length={TASK.length})", norm="layernorm")
    fit(
        model,
        TASK.batches(BATCH, seed=seed),
        steps=steps,
        learning_rate=2e-3,
        warmup=50,
        loss=TASK.objective,
        on_step=on_step,
    )
    return model.eval()


@torch.no_grad()
def examine(model: LanguageModel, examples: int = 128) -> Found:
    """Accuracy and nats on fresh examples."""
    example = TASK.batch(examples, seed=1_000_003)
    logits = TASK.logits(model, example)
    return Found(TASK.metric(logits, example), TASK.nats(logits, example))


def entries_share(length: int, layers: int = LAYERS, full: int = 2, block: int = BLOCK) -> float:
    """Logits of `full` full layers and blocks in the others, over those of full attention in all."""
    near = (causal() & blocks(block, 1)).entries(length) / causal().entries(length)
    return full / layers + (1 - full / layers) * near
