"""Combiner: every head of a single layer reaches every token, at the cost of sparse attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lengthwise.models.language_model import LanguageModel
from lengthwise.ops.combiner import partition
from lengthwise.systems.cue import DIM, build, medians
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds, reported
from lengthwise.tasks.cue import Cue

SYSTEM = System(
    key="combiner",
    title="Combiner: Full Attention Transformer with Sparse Computation Cost",
    arxiv="2107.05768",
    parts=["mixers.combiner", "ops.combiner", "ops.joint_attention", "tasks.cue"],
    claim="what sparse attention leaves out, summaries in the same softmax reach, at the same cost",
    expression="12*(combiner(heads=12, segment=128) + mlp)",
)

TASK = Cue(length=256)
STEPS, SEGMENT = 400, 16

LAYERS = {
    "Combiner": f"combiner(heads=4, segment={SEGMENT}) + mlp",
    "sparse": f"attention(heads=4, pattern=causal() & (blocks({SEGMENT}) | fixed({SEGMENT}, 1))) + mlp",
    "dense": "attention(heads=4) + mlp",
}
"""One layer each: the form fixed, the Sparse Transformer's fixed pattern of the same width, and dense attention."""


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """A cue anywhere among 255 tokens of noise, named at the last one, by a single layer; what it reaches and reads."""
    reach = {name: reached(name) for name in ("Combiner", "sparse")}
    whole = TASK.length
    yield at_least("tokens that the last one reaches in one layer", reach["Combiner"], whole, claimed="all")
    yield at_most("the same of sparse attention of the same width", reach["sparse"], 32, note=f"{SEGMENT} + 15")
    read = entries()
    yield at_most(
        "entries of a softmax over those of dense attention",
        read / ((whole + 1) / 2),
        0.3,
        claimed="√L of L",
        note=f"{read:g} of {(whole + 1) / 2:g}, the mean over the tokens",
    )
    found = medians(run, {name: (expression, run.seeds) for name, expression in LAYERS.items()}, TASK, steps=STEPS)
    over = of_seeds(run.seeds)
    yield at_least(f"accuracy, Combiner ({over})", found["Combiner"], 0.9, note=f"guessing: {TASK.chance:g}")
    yield at_most(f"accuracy, sparse attention ({over})", found["sparse"], 0.4, note="reaches 31 of 256 tokens")
    yield reported(f"accuracy, dense attention ({over})", found["dense"])


def entries() -> float:
    """Tokens and summaries in the softmax of a token, the mean over all of them."""
    seen = [partition("fixed", i, SEGMENT, TASK.length) for i in range(TASK.length)]
    return sum(len(direct) + len(regions) for direct, regions in seen) / len(seen)


def reached(name: str) -> int:
    """Inputs of the layer that the last output has a gradient by."""
    torch.manual_seed(0)
    model = build(LAYERS[name], TASK)
    assert isinstance(model, LanguageModel)
    x = torch.randn(1, TASK.length, DIM, requires_grad=True)
    model.stack(x)[0][0, -1].square().sum().backward()
    assert x.grad is not None
    return int((x.grad[0] != 0).any(1).sum())
