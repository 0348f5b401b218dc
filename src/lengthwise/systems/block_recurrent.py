"""Block-Recurrent Transformers: what a bank of states carries through a sequence that windows don't reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import nn

from lengthwise.measure import interleaved
from lengthwise.mixers.block_recurrent import begin
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.stack import Residual
from lengthwise.systems.experiments import progress
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported
from lengthwise.tasks.copying import DelayedCopying
from lengthwise.tasks.task import Example
from lengthwise.training.fit import fit

SYSTEM = System(
    key="block-recurrent",
    title="Block-Recurrent Transformers",
    arxiv="2203.07852",
    parts=["mixers.block_recurrent", "mixers.segments", "tasks.delayed_copying"],
    claim="one layer with states that go from block to block carries what a window loses, at a cost linear in length",
    expression="9*(attention(window=512) + mlp) + block_recurrent(block=512, states=512, backprop=8)"
    " + attention(window=512) + mlp + attention(window=512) + mlp",
)

BLOCK, BLOCKS, STATES, DIM, HEADS = 16, 12, 16, 64, 4
TASK = DelayedCopying(length=BLOCKS * BLOCK, memory=8, symbols=8, noise=8)
BATCH = 32
CURRICULUM = {3: 300, 6: 1250, 12: 450}
"""Steps on sequences of so many blocks."""

TIMED = (6, 12, 24)
"""Blocks of the sequences whose steps are timed."""

ORDINARY = f"attention(heads={HEADS}, window={BLOCK}) + mlp(activation=relu, bias=false)"


def recurrent(gate: str) -> str:
    """Three layers, the second of them recurrent, its attention scaled from the start as the others' is."""
    sizes = f"heads={HEADS}, block={BLOCK}, states={STATES}, scale={math.sqrt(DIM / HEADS)}"
    return f"{ORDINARY} + block_recurrent({sizes}, gate={gate}) + {ORDINARY}"


VARIANTS = {"fixed": recurrent("fixed"), "lstm": recurrent("lstm"), "windows": f"4*({ORDINARY})"}


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Delayed copying over 12 blocks of 16 tokens by three layers, the second of them recurrent, against four layers of
    attention in a window; and the time of a training step against the length.

    Width 64, 4 heads, RMSNorm, one matrix for embedding and output, 16 states, gradients through all blocks. AdamW at a
    constant 1e-3, with weight decay 0.01, on batches of 32, gradients clipped to 1: 300 steps on sequences of 3 blocks,
    1250 of 6, 450 of 12, with the first of the seeds alone. Matrices begin as the recurrent layer's. The layers of
    attention have rotary positions in place of T5 biases, and the recurrent one begins with a scale of 4 instead of 1,
    with which trials on 3 blocks learned in fewer steps. The windows of four layers reach 60 tokens back, and the
    symbols are 184 back. Accuracy is the share of symbols that are right on 256 fresh sequences; 1/8 is chance.
    """
    seed = run.seeds[0]
    on_step = progress(run, len(VARIANTS) * sum(CURRICULUM.values()))
    found = {name: accuracy(name, seed, on_step(f"{name}, seed {seed}")) for name in VARIANTS}
    yield at_least(f"accuracy with fixed gates (seed {seed})", found["fixed"], 0.80)
    yield reported(f"accuracy with LSTM gates (seed {seed})", found["lstm"])
    yield at_most(f"accuracy of four layers of windows (seed {seed})", found["windows"], 0.20)
    yield from step_times()


def build(name: str) -> LanguageModel:
    """The model of a variant."""
    model = LanguageModel(TASK.vocab_size, DIM, VARIANTS[name], position="rope", tie=True)
    for layer in model.stack.layers:
        if isinstance(layer, Residual):
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    begin(module)
    return model


def train(
    name: str,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
    curriculum: Mapping[int, int] | None = None,
) -> LanguageModel:
    """A variant after its training."""
    torch.manual_seed(seed)
    model, curriculum = build(name), curriculum or CURRICULUM
    lengths = [blocks * BLOCK for blocks, steps in curriculum.items() for _ in range(steps)]
    batches = (TASK.batch(BATCH, length=length, seed=(seed, step)) for step, length in enumerate(lengths))
    fit(
        model,
        batches,
        steps=len(lengths),
        learning_rate=1e-3,
        warmup=0,
        final=1.0,
        weight_decay=0.01,
        loss=TASK.objective,
        on_step=on_step,
    )
    return model.eval()


def accuracy(name: str, seed: int, on_step: Callable[[int, float], None] | None = None) -> float:
    """Share of the symbols that a variant gets right after its training."""
    return TASK.score(train(name, seed, on_step), examples=256)


def step_times() -> Iterator[Figure]:
    """The time of a training step by the length of its sequences."""
    model = build("fixed")
    examples = {blocks: TASK.batch(BATCH, length=blocks * BLOCK, seed=0) for blocks in TIMED}
    steps = {str(blocks): partial(step, model, example) for blocks, example in examples.items()}
    times = interleaved(steps, repeats=7)
    short, middle, long = (times[str(blocks)] for blocks in TIMED)
    ms = ", ".join(f"{1e3 * times[str(blocks)]:.0f} ms at {blocks}" for blocks in TIMED)
    yield at_most(f"time of a step at {TIMED[2]} blocks, over that at {TIMED[1]}", long / middle, 2.3, "linear", ms)
    yield reported(f"the same at {TIMED[1]} blocks, over {TIMED[0]}", middle / short, "linear")


def step(model: LanguageModel, example: Example) -> None:
    """Forward and backward."""
    model.zero_grad(set_to_none=True)
    TASK.objective(model, example).backward()
