"""Cable: steps that each token chooses in the place of ALiBi's slopes, read far beyond the trained length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.mixers.attention import Attention
from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.cable import Cable
from lengthwise.systems.experiments import nll_and_rise, of_each, train_each, validation_windows
from lengthwise.systems.system import Figure, Run, System, at_most, of_seeds, reported

SYSTEM = System(
    key="cable",
    title="Context-aware Biases for Length Extrapolation",
    arxiv="2503.08067",
    parts=["positions.cable", "mixers.attention", "caches.sums"],
    claim="biases whose steps depend on the tokens go on beyond the trained length, and beat a model trained there",
    expression="12*(attention(position=cable) + mlp)",
)

STEPS = 450
LENGTHS = (64, 128, 256, 512)
KINDS: dict[str, dict[str, Any]] = {
    "cable": {"position": "cable(heads=4)"},
    "rope": {"position": "rope"},
    "sinusoidal trained at 128": {"position": "sinusoidal(scale=0.02)", "length": 128, "batch": 8},
}
"""What is compared, with equally many tokens and steps."""


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """The byte language model of `lengthwise.systems.experiments` with each position, trained at 64 bytes unless it is
    said and read up to 512. D(T) is what the nats per byte at the end of T bytes have above those at 64."""
    models, over = train_each(run, KINDS, run.seeds, STEPS), of_seeds(run.seeds)
    found = of_each(models, partial(nll_and_rise, lengths=LENGTHS), median)
    cable, rope, sinusoidal = (found[name] for name in KINDS)
    for name, length in itertools.product(found, LENGTHS):
        yield reported(f"nats per byte at length {length}, {name} ({over})", found[name][str(length)])
    twice = LENGTHS[1]
    yield at_most(
        f"D({LENGTHS[-1]}) of cable over that of rope ({over})",
        cable["rise"] / rope["rise"],
        0.3,
        claimed="trained at 1024, perplexity goes on falling up to 8192",
    )
    yield at_most(
        f"nats per byte at length {twice} that cable has more than a sinusoidal model trained there ({over})",
        cable[str(twice)] - sinusoidal[str(twice)],
        0.0,
        claimed="334M, trained at 512 and read at 1024: perplexity lower by 0.65",
    )
    for number, steps in enumerate(mean_steps(models["cable"][0], validation_windows(LENGTHS[0])[:, :-1])):
        heads = ", ".join(f"{step:.3f}" for step in steps.tolist())
        yield reported(f"mean step of layer {number}, seed {run.seeds[0]}", float(steps.mean()), note=f"heads: {heads}")


@torch.no_grad()
def mean_steps(model: LanguageModel, tokens: Tensor) -> list[Float[Tensor, " heads"]]:
    """The mean step of each head on a text, layer by layer: the slope that ALiBi would have there."""
    found: list[Tensor] = []

    def listen(part: Attention, given: tuple[Any, ...]) -> None:
        assert isinstance(part.position, Cable)
        found.append(-part.position.steps(given[0], part.heads).mean((0, 1)))

    handles = [m.register_forward_pre_hook(listen) for m in model.modules() if isinstance(m, Attention)]
    try:
        model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return found
