"""Multiple temporal perspectives: a trained RWKV-4 read from several views, fine-tuned on another kind of text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor

from lengthwise.conversion.perspectives import add_perspectives, train_only
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems import rwkv_model
from lengthwise.systems.experiments import OnStep, bits_per_byte, parameters, progress
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, reported
from lengthwise.tasks.corpus import Corpus, standard_library
from lengthwise.tasks.prose import prose

SYSTEM = System(
    key="rwkv-temporal-perspectives",
    title="Enhancing Transformer RNNs with Multiple Temporal Perspectives",
    arxiv="2402.02625",
    parts=["models.perspectives", "conversion.perspectives", "mixers.rwkv", "channels.rwkv_channels", "tasks.prose"],
    claim="views of the past that share all weights but the token shifts', blended by content, improve a trained RWKV-4"
    " for some thousandths of its parameters",
    expression="perspectives(layernorm + 12*(rwkv + rwkv_channels), views=2)",
)

DIM, LENGTH, BATCH = 96, 128, 8
BASE_STEPS = 1200
RATES = (3e-4, 1e-4)
AVERAGED = "three views, averaged"
ARMS = {
    "one view": (1, "average", 300),
    "three views": (3, "learned", 300),
    AVERAGED: (3, "average", 300),
    "one view, for longer": (1, "average", 900),
}
"""Views, their blend and the steps of fine-tuning."""


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """A byte model of three layers, trained on source text and fine-tuned on prose in its mixing vectors alone.

    The base: 1200 batches of 8 windows of 128 bytes of the standard library's modules from a to m, by Adam from 2e-3 to
    1e-4. Then 300 batches of the docstrings and comments of the modules from n to z, from 3e-4 to 1e-4, where only the
    mixing vectors and the blend are trained: from one view, from three, from three that are averaged, and from one for
    the 900 steps that cost as much as 300 from three. All of a seed begin with the same base. Bits per byte are those
    of the prose of every fifth module from n to z, which no batch holds, the mean over the seeds. Batches were to hold
    16 windows, and hold half of that for the time it takes.
    """
    tell = progress(run, len(run.seeds) * (BASE_STEPS + sum(steps for _, _, steps in ARMS.values())))
    found: dict[str, list[float]] = {"base": [], **{name: [] for name in ARMS}}
    apart: list[float] = []
    for seed in run.seeds:
        base = train_base(seed, tell(f"base, seed {seed}"))
        found["base"].append(bits_per_byte(base, held_out()))
        for name in ARMS:
            model = begin(base, name, seed)
            if name == "three views":
                apart.append(difference(base, model))
                added = parameters(model) / parameters(base) - 1
            fine_tune(model, name, seed, tell(f"{name}, seed {seed}"))
            found[name].append(bits_per_byte(model, held_out()))
    yield at_most("largest difference of the logits from the base's, before fine-tuning", max(apart), 1e-5)
    yield at_most("parameters added by three views, over the base's", added, 0.02, claimed="as few as 0.0004")
    yield from compared({name: statistics.fmean(bits) for name, bits in found.items()}, len(run.seeds))


def compared(bits: dict[str, float], seeds: int) -> Iterator[Figure]:
    """Bits per byte of three views against those of one."""
    of = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    views, one, longer, averaged = (
        bits[name] for name in ("three views", "one view", "one view, for longer", AVERAGED)
    )
    yield at_least(
        f"bits per byte that three views save over one ({of})",
        one - views,
        0.005,
        claimed="above the base model fine-tuned on the same data",
        note=f"{views:.4f} and {one:.4f}; the base without fine-tuning {bits['base']:.4f}",
    )
    yield at_most(
        f"bits per byte of three views above one trained for as much compute ({of})",
        views - longer,
        0,
        note=f"{longer:.4f}" + ("" if views <= longer else "; compute explains the gain"),
    )
    note = f"{averaged:.4f}"
    yield reported(f"bits per byte that three averaged views save over one ({of})", one - averaged, note=note)


@cache
def domains() -> tuple[Corpus, Corpus, Corpus]:
    """The source text of the modules from a to m, the prose of those from n to z, and that of every fifth of these,
    held out."""
    library = standard_library()
    early = library.select(lambda name: "a" <= name[0].lower() <= "m")
    late = library.select(lambda name: "n" <= name[0].lower() <= "z")
    return early, *prose(late).split(every=5)


def held_out() -> Int[Tensor, "windows n"]:
    """All of the held-out prose, in windows of the length of training."""
    corpus = domains()[2]
    return corpus.windows(len(corpus) // LENGTH, LENGTH)


def train_base(seed: int, on_step: OnStep | None = None) -> LanguageModel:
    """RWKV-4 of three layers, trained on source text."""
    torch.manual_seed(seed)
    model = rwkv_model.build(rwkv_model.layers(3), DIM)
    rwkv_model.train(model, domains()[0].batches(LENGTH, BATCH, seed), steps=BASE_STEPS, on_step=on_step)
    return model.eval()


def begin(base: LanguageModel, name: str, seed: int) -> LanguageModel:
    """One of `ARMS` before its fine-tuning: only the mixing vectors and the blend can be trained."""
    views, blend, _ = ARMS[name]
    torch.manual_seed(seed)
    model = add_perspectives(base, views, blend).eval()
    train_only(model, "perspectives")
    return model


def fine_tune(model: LanguageModel, name: str, seed: int, on_step: OnStep | None = None) -> None:
    """Train it on prose."""
    batches, (first, last) = domains()[1].batches(LENGTH, BATCH, seed), RATES
    rwkv_model.train(model, batches, steps=ARMS[name][2], learning_rate=first, last_rate=last, on_step=on_step)
    model.eval()


@torch.no_grad()
def difference(base: LanguageModel, model: LanguageModel) -> float:
    """The largest difference between the logits of two models of some prose."""
    tokens = held_out()[:64, :-1]
    return float((model(tokens)[0] - base(tokens)[0]).abs().max())
