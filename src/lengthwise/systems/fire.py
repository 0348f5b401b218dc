"""FIRE: distances interpolated by the position of the query, so that a model goes on beyond its trained length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import mean

from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.experiments import nll, rise, train_each
from lengthwise.systems.system import Figure, Run, System, at_most, reported

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
    models = train_each(run, KINDS, run.seeds[:2], STEPS)
    over = f"mean of {len(models['fire'])} seeds" if len(models["fire"]) > 1 else f"seed {run.seeds[0]}"

    def of(name: str, measure: Callable[[LanguageModel], float]) -> float:
        return mean(measure(model) for model in models[name])

    trained, longest = LENGTHS[0], LENGTHS[-1]
    inside, beyond = partial(nll, length=trained), partial(rise, length=longest)
    for name in models:
        for length in LENGTHS:
            found = of(name, partial(nll, length=length))
            yield reported(f"nats per byte at length {length}, {name} ({over})", found)
    yield at_most(
        f"D({longest}) of fire over that of rope ({over})",
        of("fire", beyond) / of("rope", beyond),
        0.5,
        claimed="C4, trained at 2048 and read at 8192: perplexity lower than the next best by 2.28",
    )
    yield at_most(
        f"nats per byte at length {trained} that fire has more than rope ({over})",
        of("fire", inside) - of("rope", inside),
        0.10,
        claimed="on a par with rope on short tasks",
    )
