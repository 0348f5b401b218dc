"""NoPE: a causal language model without position encoding learns where its tokens are."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from lengthwise.models.embedding import TokenStack
from lengthwise.models.encoder import Encoder
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.experiments import (
    DECODER,
    OnStep,
    byte_batches,
    initialise,
    nll,
    train_bytes,
    validation_windows,
)
from lengthwise.systems.position_probe import mean_absolute_distances
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported

SYSTEM = System(
    key="nope",
    title="Transformer Language Models without Positional Encodings Still Learn Positional Information",
    arxiv="2203.16634",
    parts=["positions.none", "mixers.attention"],
    claim="without position encoding a causal model is nearly as good, and a probe reads positions from its layers",
    expression="12*(attention(position=none) + mlp)",
)

LENGTH = 64
STEPS = 450
PROBE_STEPS = 300
CHANCE = LENGTH / 3


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Models of bytes with and without learned positions, each window begun by a byte of its own; then the probes."""
    seeds = run.seeds[:2]
    models: dict[str, list[LanguageModel]] = {"none": [], f"learned(length={LENGTH})": []}
    jobs = [(seed, position) for seed in seeds for position in models]
    for done, (seed, position) in enumerate(jobs):
        watch = progress(run, f"{position}, seed {seed}", 0.6 * done / len(jobs), 0.6 / len(jobs))
        models[position].append(train_bytes(position=position, seed=seed, steps=STEPS, bos=True, on_step=watch))
    without, learned = (sum(nll(m, LENGTH, bos=True) for m in group) / len(group) for group in models.values())
    yield reported("nats per byte without positions", without)
    yield reported("nats per byte with learned positions", learned)
    yield at_most(
        f"perplexity without positions over that with learned ones (mean of {len(seeds)} seeds)",
        math.exp(without - learned),
        1.10,
        claimed="20.97 / 20.42 = 1.03 on WikiText-103",
    )
    run.progress("probing the trained models", 0.6)
    probed = [probe(model, seed) for model, seed in zip(models["none"], seeds, strict=True)]
    distances = [sum(layer) / len(layer) for layer in zip(*probed, strict=True)]
    for number, distance in enumerate(distances):
        yield reported(f"mean absolute distance of the probe, layer {number}", distance, note=f"chance {CHANCE:.1f}")
    yield at_least(
        "mean absolute distance at the embeddings, in units of chance", distances[0] / CHANCE, 0.8, claimed="0.99"
    )
    yield at_most(
        "smallest mean absolute distance of all layers, in units of chance",
        min(distances) / CHANCE,
        0.35,
        claimed="0.05 after 4 of 24 layers",
        note=f"two-layer probe, {PROBE_STEPS} steps of Adam at 1e-3",
    )
    run.progress("probing an untrained bidirectional model", 0.8)
    yield at_least(
        "the same on an untrained bidirectional model, which can't know positions",
        min(probe(untrained_encoder(seeds[0]), seeds[0])) / CHANCE,
        0.8,
    )
    run.progress("probing at a higher learning rate", 0.9)
    yield reported(
        "smallest mean absolute distance, in units of chance, with a probe trained at 1e-2",
        min(probe(models["none"][0], seeds[0], learning_rate=1e-2)) / CHANCE,
    )


def progress(run: Run, text: str, begin: float, share: float) -> OnStep:
    """What tells the run about each training step of a job that is `share` of the experiment."""
    return lambda step, loss: run.progress(f"{text}: {loss:.3f} nats per byte", begin + share * (step + 1) / STEPS)


def probe(model: TokenStack, seed: int, learning_rate: float = 1e-3) -> list[float]:
    """The mean absolute distance of each layer's probe, on files that neither model nor probe was trained on."""
    inputs = (tokens[:, :-1] for tokens in byte_batches(LENGTH, 64, seed + 1000, bos=True))
    held_out = validation_windows(LENGTH, windows=256, bos=True)[:, :-1]
    return mean_absolute_distances(model, inputs, held_out, steps=PROBE_STEPS, learning_rate=learning_rate, seed=seed)


def untrained_encoder(seed: int) -> Encoder:
    """The same layers without the causal mask, as they begin."""
    torch.manual_seed(seed)
    model = Encoder(vocab_size=256, dim=64, layers=DECODER, position="none", norm="layernorm")
    initialise(model, 0.02)
    return model.eval()
