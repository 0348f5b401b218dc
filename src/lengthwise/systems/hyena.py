"""Hyena: recall by gates and implicit long filters, and time that grows almost in proportion to the length."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.contract import SequenceModule
from lengthwise.measure import interleaved
from lengthwise.mixers.attention import Attention
from lengthwise.mixers.hyena import Hyena, ImplicitFilter
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds, reported
from lengthwise.tasks.recall import SingleRecall
from lengthwise.training.fit import fit

SYSTEM = System(
    key="hyena",
    title="Hyena Hierarchy: Towards Larger Convolutional Language Models",
    arxiv="2302.10866",
    parts=["mixers.hyena", "ops.long_convolution", "ops.short_convolution"],
    claim="gates between implicit long convolutions recall what convolutions alone can't, in almost linear time",
    expression="18*(hyena + mlp(hidden=1728))",
)

TASK = SingleRecall()
DIM = 64
STEPS = 1200
LENGTHS = (1024, 4096, 16384)


class UngatedHyena(Hyena):
    """The same block with x_0 = … = x_{n−1} = 1: long convolutions and linear maps alone."""

    def gate(
        self,
        v: Float[Tensor, "batch length dim"],
        x: Float[Tensor, "batch length dim"],  # noqa: ARG002
    ) -> Float[Tensor, "batch length dim"]:
        """The value as it is."""
        return v


class FreeFilter(ImplicitFilter):
    """Every tap a parameter of its own, N(0, 0.02) at first, under the same window."""

    def __init__(self, channels: int, max_length: int, **settings: float) -> None:
        super().__init__(channels, max_length, **settings)  # type: ignore[arg-type]
        del self.layers, self.frequency
        self.taps = nn.Parameter(0.02 * torch.randn(max_length, channels))
        self.taps.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, taps: int) -> Float[Tensor, "taps channels"]:
        """The first taps of the filters."""
        return self.taps[:taps] * self.window(taps, self.taps.dtype)


class FreeFilterHyena(Hyena):
    """The same block without the network that makes the filters."""

    filter_type = FreeFilter


MIXERS: dict[str, type[SequenceModule]] = {"gated": Hyena, "ungated": UngatedHyena, "free_filter": FreeFilterHyena}
"""What the experiment compares, everything else being equal."""


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Associative recall by two layers with and without gates; the operator's time against the length."""
    found = medians(run)
    over = of_seeds(run.seeds)
    chance = f"guessing: {TASK.chance:g}"
    yield at_least(f"recall accuracy ({over})", found["gated"], 0.75, claimed="97.2 % at length 131K", note=chance)
    yield at_least(
        f"accuracy above that without gates ({over})",
        found["gated"] - found["ungated"],
        0.15,
        claimed="more than 50 points above other long convolutions",
        note=f"without gates: {found['ungated']:.3f}",
    )
    yield reported(f"recall accuracy with a free filter in place of the network ({over})", found["free_filter"])
    run.progress("time against the length", 0.95)
    times = forward_times()
    short, long = min(LENGTHS), max(LENGTHS)
    yield at_most(
        f"time at {long} tokens over that at {short}",
        times["hyena", long] / times["hyena", short],
        40,
        claimed="L log L",
    )
    yield at_least(
        f"time of masked softmax attention over that of Hyena at {long} tokens",
        times["attention", long] / times["hyena", long],
        1,
        claimed="100 at 64K",
    )


def medians(run: Run) -> dict[str, float]:
    """For each mixer the median accuracy over the run's seeds."""
    jobs = [(seed, name) for seed in run.seeds for name in MIXERS]
    found: dict[str, list[float]] = {name: [] for name in MIXERS}
    for done, (seed, name) in enumerate(jobs):

        def on_step(step: int, loss: float, name: str = name, seed: int = seed, done: int = done) -> None:
            run.progress(f"{name}, seed {seed}: loss {loss:.3f}", 0.95 * (done + (step + 1) / STEPS) / len(jobs))

        found[name].append(accuracy(name, seed, on_step))
    return {name: statistics.median(values) for name, values in found.items()}


def build(name: str) -> LanguageModel:
    """The model of the experiment with one of `MIXERS`: two layers, filters for the task's length."""
    sizes = f"max_length={TASK.length}, emb_dim=5, filter_order=32, w=10"
    layers = f"2*({name}({sizes}) + mlp(hidden={2 * DIM}))"
    return LanguageModel(TASK.vocab_size, DIM, layers, position="none", norm="layernorm", tie=True, parts=MIXERS)


def accuracy(name: str, seed: int, on_step: Callable[[int, float], None] | None = None) -> float:
    """Share of 512 fresh sequences answered right after training."""
    torch.manual_seed(seed)
    model = build(name)
    fit(
        model,
        TASK.batches(32, seed=seed),
        steps=STEPS,
        learning_rate=4e-3,
        warmup=min(100, STEPS),
        final=0.0,
        loss=TASK.objective,
        on_step=on_step,
    )
    return TASK.score(model.eval(), examples=512)


@torch.no_grad()
def forward_times() -> dict[tuple[str, int], float]:
    """Median seconds of the operator and of softmax attention, width 64, with the filters made anew each time."""
    torch.manual_seed(0)
    mixers = {"hyena": Hyena(DIM, max_length=max(LENGTHS)).eval(), "attention": Attention(DIM, heads=4).eval()}
    x = torch.randn(1, max(LENGTHS), DIM)
    calls = {(name, n): partial(_forward, mixer, x[:, :n]) for name, mixer in mixers.items() for n in LENGTHS}
    times = interleaved({str(key): call for key, call in calls.items()}, repeats=5)
    return {key: times[str(key)] for key in calls}


def _forward(mixer: SequenceModule, x: Tensor) -> None:
    if isinstance(mixer, Hyena):
        mixer.forget_filters()
    mixer(x)
