"""Experiments that several systems share: a small byte language model on the standard library's source text.

    model = train_bytes("4*(attention(heads=4) + mlp)", dim=64, position="rope", seed=0)
    nll(model, 64), nll(model, 512)                      # nats per byte near the end of contexts of 64 and 512 bytes

Everything but the layers and the position stays the same between variants: two calls with equal `seed`, `length` and
`batch` read the same batches in the same order, and modules of equal shape begin with equal weights. The corpus is the
top-level modules of the running Python's standard library, sorted by name, every tenth held out (about 4 MB to train
on).

The defaults are those that all experiments with positions share: width 64, LayerNorm, weights N(0, 0.02), length 64,
batch 16, 450 steps of AdamW (0.9, 0.95) with weight decay 0.1, learning rate 2e-3 after 50 steps of warm-up, cosine to
a tenth, gradients clipped to 1. Other sizes are arguments.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.contract import Layout
from lengthwise.models.encoder import Encoder
from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.position import Position
from lengthwise.systems.system import Run
from lengthwise.tasks.corpus import Corpus, standard_library
from lengthwise.training.fit import fit

Model = TypeVar("Model")

OnStep = Callable[[int, float], None]
"""Called after each step of training with its number, from 0, and its loss."""

DECODER = "4*(attention(heads=4) + mlp)"
"""The decoder of the experiments with positions."""

BOS = 0
"""The byte that begins a document where an experiment asks for one. It doesn't occur in source text."""


@functools.cache
def corpus() -> tuple[Corpus, Corpus]:
    """Training and validation text that share no file."""
    return standard_library().split(every=10)


def begin(tokens: Int[Tensor, "rows n"]) -> Int[Tensor, "rows n_and_1"]:
    """The rows with the beginning-of-sequence byte before them."""
    return functional.pad(tokens, (1, 0), value=BOS)


def byte_batches(length: int, batch: int, seed: int, bos: bool = False) -> Iterator[Int[Tensor, "batch n"]]:
    """Endless random windows of the training text, [batch, length + 1]; with `bos`, that byte comes first and the text
    has one byte less."""
    if not bos:
        return corpus()[0].batches(length, batch, seed)
    return (begin(tokens) for tokens in corpus()[0].batches(length - 1, batch, seed))


def train_bytes(
    layers: str = DECODER,
    position: str = "none",
    *,
    seed: int = 0,
    dim: int = 64,
    norm: str = "layernorm",
    length: int = 64,
    batch: int = 16,
    steps: int = 450,
    learning_rate: float = 2e-3,
    warmup: int = 50,
    final: float = 0.1,
    std: float | None = 0.02,
    bos: bool = False,
    on_step: OnStep | None = None,
) -> LanguageModel:
    """A language model of bytes, built, trained and left in evaluation mode.

    std: all linear maps and embeddings begin as N(0, std), and their biases as 0; None keeps what each part chooses for
    itself. bos: every window begins with the byte `BOS`.
    """
    torch.manual_seed(seed)
    model = LanguageModel(vocab_size=256, dim=dim, layers=layers, position=position, norm=norm)
    if std is not None:
        torch.manual_seed(seed)  # again, so that parameters of a position don't shift the draws of what is shared
        initialise(model, std)
    batches = byte_batches(length, batch, seed, bos)
    fit(model, batches, steps=steps, learning_rate=learning_rate, warmup=warmup, final=final, on_step=on_step)
    return model.eval()


class Reader(nn.Module):
    """An encoder with a linear map from each token's output to the tokens."""

    def __init__(self, vocab_size: int, dim: int, layers: str, position: str) -> None:
        super().__init__()
        self.encoder = Encoder(vocab_size, dim, layers, position=position, norm="layernorm")
        self.head = nn.Linear(dim, vocab_size)

    def forward(
        self, tokens: Int[Tensor, "batch length"], layout: Layout | None = None
    ) -> tuple[Float[Tensor, "batch length vocab"], None]:
        """Logits for each place."""
        return self.head(self.encoder(tokens, layout=layout)[0]), None


def initialise(model: nn.Module, std: float) -> None:
    """Draw the weights of all linear maps and embeddings from N(0, std), and set the biases of linear maps to 0."""
    for module in encodings_last(model):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def initialise_by_width(model: nn.Module) -> None:
    """Draw the weights of all linear maps from N(0, 1 / inputs), so that each gives what is as large as its input.

    Small models that have to find which tokens belong together begin to do so several times sooner than from N(0,
    0.02²), at which logits of attention are all but equal.
    """
    for module in encodings_last(model):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)


def encodings_last(model: nn.Module) -> list[nn.Module]:
    """All parts, those of position encodings last: what they draw leaves all others as they are without it."""
    inside = {part for whole in model.modules() if isinstance(whole, Position) for part in whole.modules()}
    return sorted(model.modules(), key=lambda part: part in inside)


@torch.no_grad()
def nll(
    model: nn.Module, length: int, *, last: int = 32, windows: int = 48, longest: int = 512, bos: bool = False
) -> float:
    """Nats per byte over the `last` predictions of `windows` evenly spaced validation windows of `length` inputs.

    Windows of all lengths up to `longest` end at the same places, so that they predict the same bytes from more or less
    context. With `bos`, the first of the `length` inputs is that byte.
    """
    return float(nll_by_position(model, length, windows=windows, longest=longest, bos=bos)[-last:].mean())


def rise(model: nn.Module, length: int, trained: int = 64) -> float:
    """D(T) = NLL(T) − NLL(trained): how much worse the same bytes are predicted from contexts of `length` than from
    contexts as long as those that the model was trained on."""
    longest = max(length, 512)
    return nll(model, length, longest=longest) - nll(model, trained, longest=longest)


def nll_and_rise(model: nn.Module, lengths: Sequence[int]) -> dict[str, float]:
    """Nats per byte at each of these lengths, by their digits, and the "rise" from the first of them to the last."""
    return {**{str(n): nll(model, n) for n in lengths}, "rise": rise(model, lengths[-1], lengths[0])}


@torch.no_grad()
def nll_by_position(
    model: nn.Module, length: int, *, windows: int = 48, longest: int = 512, bos: bool = False
) -> Float[Tensor, " length"]:
    """Nats per byte of each prediction of a window, the mean over `windows` evenly spaced validation windows."""
    return nll_of(model, validation_windows(length, windows, longest, bos)).mean(0)


@torch.no_grad()
def nll_of(model: nn.Module, tokens: Int[Tensor, "rows n"]) -> Float[Tensor, "rows length"]:
    """Nats of each token after the first of its row."""
    losses, rows = [], max(1, 16384 // (tokens.shape[1] - 1))
    for part in tokens.split(rows):
        logits, _ = model(part[:, :-1])
        losses.append(functional.cross_entropy(logits.float().transpose(1, 2), part[:, 1:], reduction="none"))
    return torch.cat(losses)


def bits_per_byte(model: nn.Module, tokens: Int[Tensor, "rows n"]) -> float:
    """The mean over all bytes but the first of each row."""
    return float(nll_of(model, tokens).mean()) / math.log(2)


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def validation_windows(
    length: int, windows: int = 48, longest: int = 512, bos: bool = False
) -> Int[Tensor, "windows n"]:
    """`windows` evenly spaced stretches of the validation text, [windows, length + 1], cut at their front from ones of
    `longest`."""
    tokens = corpus()[1].windows(windows, max(length, longest))
    return begin(tokens[:, -length:]) if bos else tokens[:, -(length + 1) :]


def progress(run: Run, total: int) -> Callable[[str], OnStep]:
    """Tells how far an experiment is that trains for `total` steps in all: called with the name of what is trained
    next, it gives what to call after each of its steps."""
    done = 0

    def named(name: str) -> OnStep:
        def on_step(step: int, loss: float) -> None:  # noqa: ARG001
            nonlocal done
            done += 1
            run.progress(f"{name}: loss {loss:.3f}", done / total)

        return on_step

    return named


def train_each(
    run: Run, kinds: Mapping[str, Mapping[str, Any]], seeds: tuple[int, ...], steps: int
) -> dict[str, list[LanguageModel]]:
    """A model of each kind for each seed, trained for `steps`. kinds: other arguments of `train_bytes`, by name."""
    on_step = progress(run, len(kinds) * len(seeds) * steps)
    models: dict[str, list[LanguageModel]] = {name: [] for name in kinds}
    for seed, (name, given) in itertools.product(seeds, kinds.items()):
        watch = on_step(f"{name}, seed {seed}")
        models[name].append(train_bytes(**given, seed=seed, steps=steps, on_step=watch))
    return models


def of_each(
    models: Mapping[str, Sequence[Model]],
    measure: Callable[[Model], Mapping[str, float]],
    middle: Callable[[Sequence[float]], float] = statistics.fmean,
) -> dict[str, dict[str, float]]:
    """What is measured of the models of each kind: the mean of each measure over them, or another middle."""
    rows = {name: [measure(model) for model in several] for name, several in models.items()}
    return {name: {key: middle([row[key] for row in found]) for key in found[0]} for name, found in rows.items()}


def variants(
    run: Run, jobs: dict[str, Callable[[int, OnStep], float]], seeds: tuple[int, ...], steps: int
) -> dict[str, float]:
    """The mean over `seeds` of what each job measures.

    A job is called with a seed and with what to call after each of its `steps`, and trains one variant. All jobs of a
    seed run before the next seed.
    """
    total = len(seeds) * len(jobs)
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for done, (seed, name) in enumerate((seed, name) for seed in seeds for name in jobs):

        def on_step(step: int, loss: float, name: str = name, seed: int = seed, done: int = done) -> None:
            run.progress(f"{name}, seed {seed}: {loss:.3f} nats per byte", (done + (step + 1) / steps) / total)

        found[name].append(jobs[name](seed, on_step))
    return {name: sum(values) / len(values) for name, values in found.items()}
