"""LongNet: far tokens at a low resolution, at a cost in proportion to the length."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from lengthwise.measure import interleaved
from lengthwise.ops.dilated_attention import branches_of, dilated_attention
from lengthwise.systems.cue import medians
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds, reported
from lengthwise.tasks.cue import Cue

SYSTEM = System(
    key="longnet",
    title="LongNet: Scaling Transformers to 1,000,000,000 Tokens",
    arxiv="2307.02486",
    parts=["mixers.dilated_attention", "ops.dilated_attention", "tasks.cue"],
    claim="segments that grow as their sampling gets sparser reach any token in few layers, at a cost in proportion to"
    " the length",
    expression="12*(dilated_attention(heads=12, position=rope, norm=layernorm) + mlp)",
)

TASK = Cue(length=512)
STEPS, HEADS = 400, 4

Geometry = tuple[tuple[int, ...], tuple[int, ...]]
GEOMETRIES: dict[str, Geometry] = {
    "dilated": ((32, 128, 512), (1, 2, 4)),
    "block-local": ((128,), (1,)),
    "dense": ((512,), (1,)),
}
"""Segments and dilations of what is compared; one segment of the whole length is dense attention."""

TIMED: Geometry = ((128, 512, 2048), (1, 4, 16))
LENGTHS = (2048, 16384)


def layers(geometry: Geometry) -> str:
    """The model's layers."""
    segments, dilations = map(list, geometry)
    return f"3*(dilated_attention(heads={HEADS}, segments={segments}, dilations={dilations}) + mlp)"


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """A cue anywhere among 511 tokens of noise, named at the last one, by three layers; what the operator costs.

    Dilated attention is trained with the first two of the seeds, attention inside segments of 128 tokens, which reads
    more, and dense attention with the first alone, since a step takes long. After 400 steps dilated attention is in the
    middle of learning, and its loss still falls.
    """
    first, both = run.seeds[:1], run.seeds[:2]
    jobs = {name: (layers(g), both if name == "dilated" else first) for name, g in GEOMETRIES.items()}
    found = medians(run, jobs, TASK, steps=STEPS, share=0.97)
    chance = f"guessing: {TASK.chance:g}"
    over = of_seeds(both)
    yield at_least(f"accuracy, dilated ({over})", found["dilated"], 0.9, note=chance)
    local = "reaches 128 of 512 tokens"
    yield at_most(f"accuracy, block-local (seed {first[0]})", found["block-local"], 0.45, note=local)
    yield reported(f"accuracy, dense (seed {first[0]})", found["dense"])
    read = {name: entries(geometry, TASK.length, HEADS) for name, geometry in GEOMETRIES.items()}
    yield at_most(
        "logits of dilated attention over those of dense attention",
        read["dilated"] / read["dense"],
        0.25,
        claimed="in proportion to L, not L²",
        note=", ".join(f"{name}: {number:.0f} a head" for name, number in read.items()),
    )
    run.progress("time against the length", 0.98)
    times = forward_times()
    short, long = LENGTHS
    yield at_most(
        f"time of a token at {long} tokens over that at {short}",
        times[long] / long / (times[short] / short),
        1.5,
        claimed="nearly constant to 10⁹ tokens",
        note=f"{1e9 * times[long] / long:.0f} ns",
    )


def entries(geometry: Geometry, length: int, heads: int) -> float:
    """Logits that a head computes of `length` tokens, causal, the mean over the heads."""
    found = 0
    for branch in branches_of(*geometry):
        for offset, group in enumerate(branch.heads(heads)):
            for begin in range(0, length, branch.segment):
                rows = len(range(begin + offset, min(begin + branch.segment, length), branch.dilation))
                found += rows * (rows + 1) // 2 * (group.stop - group.start)
    return found / heads


@torch.no_grad()
def forward_times() -> dict[int, float]:
    """Median seconds of the operator, 16 heads of 16, so that every offset is used."""
    torch.manual_seed(0)
    given = [torch.randn(1, max(LENGTHS), 16, 16) for _ in range(3)]
    branches = branches_of(*TIMED)

    def forward(n: int) -> None:
        dilated_attention(given[0][:, :n], given[1][:, :n], given[2][:, :n], branches)

    calls = {str(n): partial(forward, n) for n in LENGTHS}
    times = interleaved(calls, repeats=9, warmup=2)
    return {n: times[str(n)] for n in LENGTHS}
