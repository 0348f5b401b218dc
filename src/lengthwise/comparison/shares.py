"""Training under a budget: so many seconds, or so many tokens, with a schedule that follows what has been spent."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lengthwise.training.auxiliary import auxiliary_loss
from lengthwise.training.failure import Diverged
from lengthwise.training.fit import next_token_loss
from lengthwise.training.optimizer import adamw, learning_rate_factor, set_learning_rate

WARMUP = 0.05
"""The share of the budget in which the learning rate rises."""

GRAIN = 10_000
"""The schedule's steps for the whole budget."""

Batches = Iterator[Int[Tensor, "batch tokens"]]
Context = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class Share:
    """What one candidate may spend: seconds of training or tokens, whichever is not None."""

    seconds: float | None = None
    tokens: int | None = None

    def spent(self, seconds: float, tokens: int) -> float:
        """The fraction that is used up."""
        return seconds / self.seconds if self.seconds is not None else tokens / (self.tokens or 1)


@dataclass(frozen=True)
class Progress:
    """Where a training stands: seconds and tokens spent, their fraction, and the mean loss in nats since the last."""

    seconds: float
    tokens: int
    fraction: float
    loss: float


def step(model: nn.Module, batch: Int[Tensor, "batch tokens"], context: Context) -> Tensor:
    """Forward and backward of one batch; the loss of the tokens. What parts of the model add to it counts too."""
    with context():
        loss = next_token_loss(model, batch)
    (loss + auxiliary_loss(model)).backward()
    return loss


def warm_up(model: nn.Module, batch: Int[Tensor, "batch tokens"], context: Context, repeats: int = 3) -> float:
    """Seconds of a step, after the first, in which kernels are compiled. The model itself learns nothing."""
    twin = copy.deepcopy(model)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        step(twin, batch, context)
        times.append(time.perf_counter() - begin)
        twin.zero_grad(set_to_none=True)
    return min(times[1:], default=times[0])


def train(
    model: nn.Module,
    batches: Batches,
    share: Share,
    *,
    learning_rate: float,
    context: Context,
    on_progress: Callable[[Progress], None],
    points: int = 60,
) -> float:
    """Train until the share is spent and return the tokens per second of the median step.

    AdamW with linear warm-up over the first 5 % of the budget and a cosine to a tenth over the rest, gradients clipped
    to norm 1. `on_progress` is called about `points` times; its time isn't counted.

    Raises Diverged where the loss is no finite number.
    """
    optimizer = adamw(model, learning_rate=learning_rate)
    weights = [p for p in model.parameters() if p.requires_grad]
    model.train()
    spent, tokens, reported, per_step = 0.0, 0, 0.0, 0
    losses: list[float] = []
    times: list[float] = []
    while True:
        fraction = share.spent(spent, tokens)
        if fraction >= 1:
            break
        begin = time.perf_counter()
        batch = next(batches)
        factor = learning_rate_factor(int(fraction * GRAIN), steps=GRAIN, warmup=int(WARMUP * GRAIN))
        set_learning_rate(optimizer, learning_rate * factor)
        optimizer.zero_grad(set_to_none=True)
        loss = step(model, batch, context).item()
        if not math.isfinite(loss):
            raise Diverged(f"the loss became {loss} after {len(times)} steps; a lower --learning-rate may help")
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        per_step = batch.shape[0] * (batch.shape[1] - 1)
        times.append(time.perf_counter() - begin)
        spent, tokens = spent + times[-1], tokens + per_step
        losses.append(loss)
        fraction = share.spent(spent, tokens)
        if fraction - reported >= 1 / points or fraction >= 1:
            on_progress(Progress(spent, tokens, min(1.0, fraction), statistics.fmean(losses)))
            reported, losses = fraction, []
    return per_step / statistics.median(times)
