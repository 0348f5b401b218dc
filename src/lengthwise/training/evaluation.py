"""How well a model predicts data: bits per byte, with a standard error, and by position in the context."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.errors import InputError
from lengthwise.training.fit import at_least_float32

CHUNK = 2048
"""Tokens that a model reads at a time, so that long contexts need memory for their state alone."""


@dataclass(frozen=True)
class AtPositions:
    """Bits per byte of the tokens that have from `begin` up to `end` - 1 tokens before them in the context."""

    begin: int
    end: int
    bits_per_byte: float
    standard_error: float | None


@dataclass(frozen=True)
class Evaluation:
    """Bits per byte over `windows` contexts of `length` tokens.

    The standard error is that of the mean over contexts, which are the independent draws; None for a single one.
    """

    bits_per_byte: float
    standard_error: float | None
    windows: int
    length: int
    by_position: tuple[AtPositions, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@torch.no_grad()
def token_losses(
    model: nn.Module,
    tokens: Int[Tensor, "batch tokens"],
    context: Callable[[], AbstractContextManager] = nullcontext,
    chunk: int = CHUNK,
) -> Float[Tensor, "batch length"]:
    """− log p(x_t | x_<t) in nats for each of the L tokens after the first, read in chunks through the state."""
    state, losses = None, []
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    for begin in range(0, inputs.shape[1], chunk):
        with context():
            logits, state = model(inputs[:, begin : begin + chunk], state)
        wanted = targets[:, begin : begin + chunk]
        losses.append(F.cross_entropy(at_least_float32(logits).transpose(1, 2), wanted, reduction="none"))
    return torch.cat(losses, dim=1)


def evaluate_windows(
    model: nn.Module,
    windows: Int[Tensor, "count tokens"],
    *,
    batch: int,
    device: torch.device,
    context: Callable[[], AbstractContextManager] = nullcontext,
    on_batch: Callable[[int], None] | None = None,
) -> Float[Tensor, "count length"]:
    """The loss in nats of each token of each window, in evaluation mode. `on_batch(rows)` is called after each batch.

    Raises InputError when the model's loss isn't finite.
    """
    was_training = model.training
    model.eval()
    try:
        parts = []
        for rows in windows.split(batch):
            parts.append(token_losses(model, rows.to(device), context).cpu())
            if on_batch is not None:
                on_batch(len(rows))
    finally:
        model.train(was_training)
    nats = torch.cat(parts)
    if not torch.isfinite(nats).all():
        position = int((~torch.isfinite(nats)).any(0).int().argmax())
        raise InputError(f"the model's loss is not finite from position {position} of the context on")
    return nats


def mean_and_error(values: Float[Tensor, " count"]) -> tuple[float, float | None]:
    """The mean and its standard error, s / √n."""
    mean = values.mean().item()
    return mean, values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None


def summarise(nats: Float[Tensor, "count length"], bytes_per_token: float) -> Evaluation:
    """Losses in nats as bits per byte, over all positions and over ranges of positions that double in size."""
    bits = nats.double() / math.log(2) / bytes_per_token
    mean, error = mean_and_error(bits.mean(dim=1))
    ranges = tuple(
        AtPositions(begin, end, *mean_and_error(bits[:, begin:end].mean(dim=1)))
        for begin, end in doubling_ranges(bits.shape[1])
    )
    return Evaluation(mean, error, bits.shape[0], bits.shape[1], ranges)


def doubling_ranges(length: int, first: int = 16) -> Iterator[tuple[int, int]]:
    """0 to 16, 16 to 32, 32 to 64 and so on up to `length`."""
    begin, end = 0, first
    while begin < length:
        yield begin, min(end, length)
        begin, end = end, 2 * end
