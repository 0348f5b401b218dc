"""Attention alignment: a retriever that is read beyond its trained length with attention as sharp as it was there."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.contract import Layout, StateTree
from lengthwise.conversion.alignment import MATCHES, attention_temperature, fit_temperature
from lengthwise.conversion.alignment import statistics as attention_statistics
from lengthwise.mixers.attention import Attention
from lengthwise.models.encoder import Encoder
from lengthwise.systems.experiments import OnStep, initialise_by_width, progress
from lengthwise.systems.system import Figure, Run, System, at_most, of_seeds, reported
from lengthwise.training.fit import fit

SYSTEM = System(
    key="attention-alignment",
    title="Attention Alignment and Flexible Positional Embeddings Improve Transformer Length Extrapolation",
    arxiv="2311.00684",
    parts=["conversion.alignment", "positions.t5", "positions.temperature", "mixers.attention"],
    claim="one temperature below 1, found without labels or training, makes attention to long inputs as sharp as it was"
    " at the trained length, and retrieval better",
    expression="12*(attention(scale=1.0, position=t5(heads=12), temperature=0.8) + mlp(activation=relu, bias=false))",
)

KEYS, VALUES = 1024, 16
TRAINED, LENGTHS = 32, (128, 512)
DIM, HEADS, BATCH, STEPS = 64, 4, 64, 400
EXAMPLES, CALIBRATION, TOKENS = 1000, 8, 8208

Items = Int[Tensor, "rows n 2"]
"""Each token's key and value; the last has a key of one of them and the value `VALUES`, which stands for none."""


@dataclass(frozen=True)
class Found:
    """What one seed's model does. sharpness, accuracy: by items, without a temperature. taus: by what is matched, at
    the most items. aligned: the accuracy at them by what is matched; at_trained: with it, at the trained items."""

    sharpness: dict[int, float]
    accuracy: dict[int, float]
    taus: dict[str, float]
    aligned: dict[str, float]
    at_trained: dict[str, float]


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Retrieval of the value that belongs to a key, from sets of items each of which is one token.

    An encoder like T5's, 64 wide, 2 layers of 4 heads, is trained on 32 items and reads 128 and 512. The temperature is
    found on 8 sequences without labels. Accuracy on the same 1000 sequences for every temperature.
    """
    over = of_seeds(run.seeds)
    on_step = progress(run, len(run.seeds) * STEPS)
    found = [examine(train(seed, on_step=on_step(f"seed {seed}")), seed) for seed in run.seeds]
    for items in (TRAINED, *LENGTHS):
        sharpness = middle([one.sharpness[items] for one in found])
        yield reported(f"largest probability of a query, {items} items ({over})", sharpness)
        yield reported(f"accuracy at {items} items ({over})", middle([one.accuracy[items] for one in found]))
    longest = LENGTHS[-1]
    spread = [one.sharpness[longest] / one.sharpness[TRAINED] for one in found]
    yield at_most(
        f"largest probability at {longest} items over that at {TRAINED} ({over})",
        middle(spread),
        0.8,
        claimed="attention flattens with the length",
    )
    for match in MATCHES:
        taus, aligned = [one.taus[match] for one in found], [one.aligned[match] for one in found]
        noted = f"at {TRAINED} items {middle([one.at_trained[match] for one in found]):.4f}"
        yield reported(f"accuracy at {longest} items, {match} matched ({over})", middle(aligned), note=noted)
        errors = middle([(1 - one.aligned[match]) / (1 - one.accuracy[longest]) for one in found])
        if match == "max_prob":
            yield at_most(f"temperature, {match} matched ({over})", middle(taus), 0.999, claimed="0.6 to 0.9")
            yield at_most(
                f"errors at {longest} items over those without a temperature, {match} matched ({over})",
                errors,
                0.95,
                claimed="better retrieval; the better of the two strategies",
            )
        else:
            yield reported(f"temperature, {match} matched ({over})", middle(taus))
            yield reported(f"errors at {longest} items over those without, {match} matched ({over})", errors)


def middle(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


class Retriever(nn.Module):
    """An encoder of items, and a linear map from the last token's output to the values."""

    def __init__(self) -> None:
        super().__init__()
        layers = f"2*(attention(heads={HEADS}, scale=1.0) + mlp(activation=relu, bias=false))"
        self.encoder = Encoder(
            KEYS, DIM, layers, position=f"t5(heads={HEADS})", norm="rmsnorm(eps=1e-6)", types=VALUES + 1
        )
        self.head = nn.Linear(DIM, VALUES)
        initialise_by_width(self)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, Attention):
                    module.q_proj.weight.mul_(module.head_dim**-0.5)  # as in T5, whose logits aren't divided by it

    def forward(
        self, items: Items, state: StateTree = None, layout: Layout | None = None
    ) -> tuple[Float[Tensor, "rows values"], None]:
        """Logits of the value that the last token asks for."""
        hidden, _ = self.encoder(items[..., 0], state, layout, types=items[..., 1])
        return self.head(hidden[:, -1]), None


def sequences(rows: int, items: int, seed: int) -> tuple[Items, Int[Tensor, " rows"]]:
    """Sets of items with different keys, and the values that they are asked for."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(rows, KEYS, generator=generator).argsort(1)[:, :items]
    values = torch.randint(VALUES, (rows, items), generator=generator)
    asked = torch.randint(items, (rows, 1), generator=generator)
    tokens = torch.stack([torch.cat([keys, keys.gather(1, asked)], 1), functional.pad(values, (0, 1), value=VALUES)], 2)
    return tokens, values.gather(1, asked).squeeze(1)


def train(seed: int, steps: int = STEPS, on_step: OnStep | None = None) -> Retriever:
    """A retriever trained with Adam on sets of `TRAINED` items."""
    torch.manual_seed(seed)
    model = Retriever()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0])[0], batch[1])

    batches = (sequences(BATCH, TRAINED, 1_000_003 * (seed + 1) + step) for step in range(steps))
    fit(
        model,
        batches,
        steps=steps,
        learning_rate=2e-3,
        warmup=0,
        final=1.0,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        loss=loss,
        on_step=on_step,
    )
    return model.eval()


def calibration(items: int, seed: int) -> Items:
    """Sequences without labels to find a temperature on."""
    return sequences(CALIBRATION, items, 2_000_003 + seed)[0]


def examine(model: Retriever, seed: int, examples: int = EXAMPLES) -> Found:
    """Sharpness and accuracy at each number of items, and what either temperature makes of them."""
    longest = LENGTHS[-1]
    every = (TRAINED, *LENGTHS)
    sharp = {n: attention_statistics(model, calibration(n, seed), n + 1).max_prob for n in every}
    right = {n: accuracy(model, n, examples) for n in every}
    taus, aligned, at_trained = {}, {}, {}
    for match in MATCHES:
        taus[match] = fit_temperature(
            model, lambda length: calibration(length - 1, seed), TRAINED + 1, longest + 1, match
        )
        with attention_temperature(model, taus[match]):
            aligned[match], at_trained[match] = (accuracy(model, n, examples) for n in (longest, TRAINED))
    return Found(sharp, right, taus, aligned, at_trained)


@torch.no_grad()
def accuracy(model: Retriever, items: int, examples: int = EXAMPLES) -> float:
    """The share of the same fresh examples that is answered right."""
    tokens, values = sequences(examples, items, 3_000_003)
    rows = max(1, TOKENS // (items + 1))
    return float(torch.cat([model(part)[0].argmax(1) for part in tokens.split(rows)]).eq(values).float().mean())
