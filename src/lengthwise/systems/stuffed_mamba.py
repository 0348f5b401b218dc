"""Stuffed Mamba: what becomes of Mamba-2's state beyond the length of training, and how much it can hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.mixers.mamba2 import Mamba2
from lengthwise.mixers.state_control import Normalise, StateControl, Window
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.experiments import (
    corpus,
    nll_by_position,
    nll_of,
    progress,
    train_bytes,
    validation_windows,
)
from lengthwise.systems.system import Figure, Run, System, at_least, of_seeds, reported
from lengthwise.tasks.recall import AssociativeRecall
from lengthwise.tasks.task import Example
from lengthwise.training.fit import fit

SYSTEM = System(
    key="stuffed-mamba",
    title="Stuffed Mamba: State Collapse and State Capacity of RNN-Based Long-Context Modeling",
    arxiv="2410.07145",
    parts=["mixers.mamba2", "mixers.state_control", "ops.linear_attention", "ops.short_convolution"],
    claim="a state too large for its training length collapses beyond it, and a window or a limit repairs it untrained",
    expression="24*mamba2(state_control=window(length=8192))",
)

BYTES = "2*mamba2(head_dim=32, state_dim=64)"
TRAINED, LENGTH, LATE, WINDOWS = 64, 4096, 2048, 96
STEPS, RECALL_STEPS = 1500, 1000

RECALL = AssociativeRecall(length=256, pairs=1, keys=15, values=16)
"""One pair, then noise, and the key once more at a random place: a vocabulary of 32."""

STATES = (2, 8, 32)
CAPACITIES = (32, 64, 128, 256, 512, 1024, 2048)


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """A byte model read far beyond its length of training, plain and repaired; recall by states of different sizes.

    Late over early: bits per byte at positions 2049 to 4096 over those at 33 to 64. Where a model begun anew every 64
    bytes does no better late, what is above 1 comes of the text, and no collapse shows at this scale. A repair's share
    is that of what late is above early. The normalisation's limits are the 95th percentile of a head's norms within the
    length of training, applied every 64 tokens. Recall is trained at lengths from 16 to 256 in batches of 16; capacity
    is the longest of 32, 64, … 2048 that is answered right nine times out of ten, 16 where none is, so that 2048 may
    stand for more.
    """
    seeds = of_seeds(run.seeds)
    on_step = progress(run, len(run.seeds) * (STEPS + len(STATES) * RECALL_STEPS))
    found = [collapse(seed, on_step(f"bytes, seed {seed}")) for seed in run.seeds]
    middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
    yield at_least(f"late over early, unrepaired ({seeds})", middle["plain"], 1.05, claimed="collapses beyond 8K")
    yield reported(f"late, unrepaired, over the same text begun anew every {TRAINED} bytes", middle["restarted"])
    for name, title in {"window": f"a window of {TRAINED}", "normalised": "normalisation"}.items():
        share = statistics.median((one["plain"] - one[name]) / (one["plain"] - 1) for one in found)
        note = f"late over early: {middle[name]:.3f}"
        yield at_least(f"share repaired by {title} ({seeds})", share, 0.5, claimed="no collapse to 64K", note=note)
    sizes = {
        n: statistics.median(capacity(n, seed, on_step(f"recall, state {n}, seed {seed}")) for seed in run.seeds)
        for n in STATES
    }
    note = ", ".join(f"{n}: {size:g}" for n, size in sizes.items())
    steps = [sizes[b] / sizes[a] for a, b in pairwise(STATES)]
    yield at_least(f"capacity's smallest growth from a state size to the next ({seeds})", min(steps), 1.0, note=note)
    largest = sizes[STATES[-1]] / sizes[STATES[0]]
    yield at_least(
        f"capacity with state {STATES[-1]} over that with {STATES[0]} ({seeds})", largest, 2.0, claimed="exponential"
    )


def collapse(seed: int, on_step: Callable[[int, float], None] | None = None, steps: int = STEPS) -> dict[str, float]:
    """Late over early bits for each treatment of the state of one trained model, and late over restarted."""
    model = train_bytes(
        BYTES, seed=seed, length=TRAINED, batch=32, steps=steps, norm="rmsnorm", std=None, on_step=on_step
    )
    limits = norms(model)
    plain = nll_by_position(model, LENGTH, windows=WINDOWS, longest=LENGTH)
    found = {"plain": late_over_early(plain), "restarted": against_restarts(model, plain)}
    control(model, lambda _: Window(TRAINED))
    found["window"] = late_over_early(nll_by_position(model, LENGTH, windows=WINDOWS, longest=LENGTH))
    control(model, lambda layer: Normalise(limit=limits[layer], every=TRAINED))
    found["normalised"] = late_over_early(nll_by_position(model, LENGTH, windows=WINDOWS, longest=LENGTH))
    return found


def mixers(model: LanguageModel) -> list[Mamba2]:
    """The model's Mamba-2 layers, in order."""
    return [module for module in model.modules() if isinstance(module, Mamba2)]


def control(model: LanguageModel, make: Callable[[int], StateControl]) -> None:
    """Give every layer its state control, made from the layer's number."""
    for number, mixer in enumerate(mixers(model)):
        mixer.control(make(number))


def late_over_early(nll: Float[Tensor, " length"]) -> float:
    """The mean beyond `LATE` over that of the second half of the length of training."""
    return float(nll[LATE:].mean() / nll[TRAINED // 2 : TRAINED].mean())


def against_restarts(model: LanguageModel, plain: Float[Tensor, " length"]) -> float:
    """Late nats over those of the same bytes where the text begins anew every `TRAINED` bytes, at the second half of
    each piece, where the restarted model has some context."""
    text = validation_windows(LENGTH, WINDOWS, LENGTH)
    late = text[:, LATE:]
    pieces = late.unfold(1, TRAINED + 1, TRAINED).flatten(0, 1)
    restarted = nll_of(model, pieces)[:, TRAINED // 2 :].mean()
    return float(plain[LATE:].unflatten(0, (-1, TRAINED))[:, TRAINED // 2 :].mean() / restarted)


@torch.no_grad()
def norms(model: LanguageModel, percentile: float = 0.95) -> list[Float[Tensor, " heads"]]:
    """For each layer the percentile of ‖S_t‖_F of each head over the tokens of training text within the length of
    training."""
    tokens, state = corpus()[0].windows(WINDOWS, TRAINED)[:, :TRAINED], None
    seen: list[list[Tensor]] = [[] for _ in mixers(model)]
    for token in tokens.split(1, 1):
        _, state = model(token, state)
        for found, layer in zip(seen, state.layers, strict=True):
            found.append(torch.linalg.matrix_norm(layer.memory))
    return [torch.cat(found).quantile(percentile, dim=0) for found in seen]


def recall_batches(batch: int, seed: int) -> Iterator[Example]:
    """Endless examples, of one length in a batch, uniform from 16 to 256."""
    return RECALL.batches_of_lengths(batch, range(16, RECALL.length + 1), seed)


def capacity(
    state_dim: int, seed: int, on_step: Callable[[int, float], None] | None = None, steps: int = RECALL_STEPS
) -> float:
    """The longest length at which a model with so large a state recalls nine out of ten."""
    torch.manual_seed(seed)
    layers = f"2*mamba2(head_dim=32, state_dim={state_dim})"
    model = LanguageModel(RECALL.vocab_size, 64, layers, position="none")
    settings: dict[str, Any] = {"learning_rate": 4e-3, "warmup": steps // 10, "weight_decay": 0.01, "final": 0.0}
    fit(model, recall_batches(16, seed), steps=steps, loss=RECALL.objective, on_step=on_step, **settings)
    model.eval()
    return max((length for length in CAPACITIES if recalled(model, length) >= 0.9), default=16)


def recalled(model: LanguageModel, length: int) -> float:
    """Share answered right of 256 examples of a length, 64 at a time."""
    return statistics.mean(RECALL.score(model, examples=64, length=length, seed=1_000_003 + part) for part in range(4))
