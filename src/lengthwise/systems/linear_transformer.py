"""Linear Transformers: decoding costs the same at every position, at the quality of softmax attention nearby."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lengthwise.contract import SequenceModule
from lengthwise.models.build import build
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.experiments import nll, train_bytes
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported
from lengthwise.tasks.copying import Copying
from lengthwise.training.fit import fit

SYSTEM = System(
    key="linear-transformer",
    title="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
    arxiv="2006.16236",
    parts=["mixers.linear_attention", "ops.linear_attention"],
    claim="decoding time per token doesn't grow with the position, at a loss near that of softmax attention",
    expression="8*(linear_attention + mlp)",
)

LENGTH = 128
STEPS = 250
COPY_STEPS = 150
PREFIXES = (256, 4096, 16384)


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Time of one token after contexts of many lengths; loss of a byte language model; the copy task."""
    run.progress("decoding after contexts of 256 to 16384 tokens", 0.0)
    linear, softmax = (decoding_times(f"{mixer}(heads=4)") for mixer in ("linear_attention", "attention"))
    longest, shortest = max(PREFIXES), min(PREFIXES)
    for name, times in (("linear", linear), ("softmax", softmax)):
        for prefix, duration in times.items():
            yield reported(f"microseconds for a token after {prefix}, {name}", 1e6 * duration)
    name = f"time of a token after {longest} over that after {shortest}"
    yield at_most(f"{name}, linear attention", linear[longest] / linear[shortest], 1.3, claimed="constant")
    yield at_least(f"{name}, softmax attention", softmax[longest] / softmax[shortest], 4, claimed="grows with length")
    losses: dict[str, list[float]] = {"linear_attention": [], "attention": []}
    jobs = [(mixer, seed) for seed in run.seeds for mixer in losses]
    for done, (mixer, seed) in enumerate(jobs):
        run.progress(f"{mixer}, seed {seed}", 0.1 + 0.7 * done / len(jobs))
        losses[mixer].append(byte_loss(mixer, seed))
    over = f"median of {len(run.seeds)} seeds"
    median = {mixer: statistics.median(values) for mixer, values in losses.items()}
    yield reported(f"nats per byte, linear attention ({over})", median["linear_attention"])
    yield reported(f"nats per byte, softmax attention ({over})", median["attention"])
    yield at_most(
        f"loss of linear attention over that of softmax ({over})",
        median["linear_attention"] / median["attention"],
        1.05,
        claimed="0.644 / 0.621 = 1.04 bits per dimension on MNIST",
    )
    for done, mixer in enumerate(losses):
        run.progress(f"copying, {mixer}", 0.8 + 0.1 * done)
        yield reported(
            f"nats per symbol of the copy task after {COPY_STEPS} steps, {mixer} (one seed)",
            copy_loss(mixer, run.seeds[0]),
            claimed="linear reaches the loss of softmax",
            note="guessing: 2.303",
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def decoding_times(expression: str, prefixes: tuple[int, ...] = PREFIXES, tokens: int = 200) -> dict[int, float]:
    """Median seconds of a token after a random prefix of each length, one thread, width 256.

    The lengths take turns, so that a change of the machine's speed reaches all of them.
    """
    torch.manual_seed(0)
    mixer = build(expression, dim=256).eval()
    states = {prefix: prefill(mixer, torch.randn(1, prefix, 256)) for prefix in prefixes}
    times: dict[int, list[float]] = {prefix: [] for prefix in prefixes}
    with one_thread():
        for token in torch.randn(tokens, 1, 1, 256):
            for prefix in prefixes:
                begin = time.perf_counter()
                _, states[prefix] = mixer(token, states[prefix])
                times[prefix].append(time.perf_counter() - begin)
    return {prefix: statistics.median(values) for prefix, values in times.items()}


def prefill(mixer: SequenceModule, x: torch.Tensor) -> Any:
    """The state after x."""
    state = None
    for part in x.split(4096, dim=1):
        _, state = mixer(part, state)
    return state


def byte_loss(mixer: str, seed: int) -> float:
    """Nats per byte on held-out text after training two layers of width 64 on windows of 128 bytes."""
    model = train_bytes(
        f"2*({mixer}(heads=2) + mlp)",
        f"learned(length={LENGTH})",
        seed=seed,
        length=LENGTH,
        batch=8,
        steps=STEPS,
        warmup=30,
        std=None,
    )
    return nll(model, LENGTH, last=LENGTH, windows=192, longest=LENGTH)


def copy_loss(mixer: str, seed: int) -> float:
    """Cross-entropy of the copied symbols: words of 31 out of 10 symbols, four layers of width 128 with 8 heads."""
    task = Copying(length=62)
    torch.manual_seed(seed)
    model = LanguageModel(
        task.vocab_size, 128, f"4*({mixer}(heads=8) + mlp)", position="learned(length=62)", norm="layernorm"
    )
    fit(model, task.batches(32, seed=seed), steps=COPY_STEPS, learning_rate=1e-3, warmup=50, loss=task.objective)
    with torch.no_grad():
        return float(task.objective(model.eval(), task.batch(256, seed=1_000_003)))
