"""FIRE: distances interpolated by the position of the query, so that a model goes on beyond its trained length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from lengthwise.systems.experiments import nll_and_rise, of_each, train_each
from lengthwise.systems.system import Figure, Run, System, at_most, of_seeds, reported

SYSTEM = System(
    key="fire",
    title="Functional Interpolation for Relative Positions Improves Long Context Transformers",
    arxiv="2310.04418",
    parts=["positions.fire", "mixers.attention"],
    claim="a network of the distance relative to the query's position goes on beyond the trained length",
    expression="12*(attention(position=fire) + mlp)",
)

STEPS = 450
LENGTHS = (64, 128, 256, 512)
KINDS = {"fire": {"position": "fire(heads=4, length=32)"}, "rope": {"position": "rope"}, "alibi": {"position": "alibi"}}
"""What is compared, everything else being equal; ALiBi for reference."""


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """The byte language model of `lengthwise.systems.experiments` with each position, trained at 64 bytes and read up
    to 512, with two seeds. D(T) is what the nats per byte at the end of T bytes have above those at 64."""
    seeds = run.seeds[:2]
    models, over = train_each(run, KINDS, seeds, STEPS), of_seeds(seeds, "mean")
    found = of_each(models, partial(nll_and_rise, lengths=LENGTHS))
    fire, rope, trained = found["fire"], found["rope"], LENGTHS[0]
    for name, length in itertools.product(found, LENGTHS):
        yield reported(f"nats per byte at length {length}, {name} ({over})", found[name][str(length)])
    yield at_most(
        f"D({LENGTHS[-1]}) of fire over that of rope ({over})",
        fire["rise"] / rope["rise"],
        0.5,
        claimed="C4, trained at 2048 and read at 8192: perplexity lower than the next best by 2.28",
    )
    yield at_most(
        f"nats per byte at length {trained} that fire has more than rope ({over})",
        fire[str(trained)] - rope[str(trained)],
        0.10,
        claimed="on a par with rope on short tasks",
    )
