"""The smallest training loop: a model, batches, a loss. Experiments use it; the full trainer is `training.loop`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.errors import InputError
from lengthwise.training.auxiliary import auxiliary_loss
from lengthwise.training.optimizer import adamw, learning_rate_factor, set_learning_rate

UNCOUNTED = -100
"""The target at a place where nothing is predicted."""

Loss = Callable[[nn.Module, Any], Tensor]
"""The scalar loss of a model on a batch, ready for `backward`."""


def next_token_loss(model: nn.Module, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of each token given those before it in its row. Rows hold L + 1 tokens.

    − 1/(B L) Σ_b Σ_{t=1..L} log p(x_{b,t} | x_{b,<t})
    """
    logits, _ = model(tokens[:, :-1])
    return cross_entropy(logits, tokens[:, 1:])


def bounded_next_token_loss(model: nn.Module, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, ""]:
    """`next_token_loss` and the `logit_penalty` of the same logits, as RWKV is trained."""
    logits, _ = model(tokens[:, :-1])
    return cross_entropy(logits, tokens[:, 1:]) + logit_penalty(logits)


def cross_entropy(
    logits: Float[Tensor, "batch length vocab"], targets: Int[Tensor, "batch length"], reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of the targets that aren't `UNCOUNTED`, in nats: their mean, or with reduction "sum" their sum."""
    flat = at_least_float32(logits).flatten(0, 1)
    return F.cross_entropy(flat, targets.flatten(), ignore_index=UNCOUNTED, reduction=reduction)


def logit_penalty(logits: Float[Tensor, "batch length vocab"], weight: float = 1e-4) -> Float[Tensor, ""]:
    """What keeps logits from drifting away together, to which cross-entropy is blind.

        weight/2 · mean_{b,t} (max_v z_{b,t,v})²

    Its gradient pulls the largest logit of each place, and no other, towards 0. Peng et al. 2023, arXiv 2305.13048.
    """
    return weight / 2 * at_least_float32(logits).max(-1).values.square().mean()


def at_least_float32(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Logits in a dtype that a sum over the vocabulary survives: half precision becomes float32."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def fit(
    model: nn.Module,
    batches: Iterator[Any],
    *,
    steps: int,
    learning_rate: float,
    warmup: int,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    clip: float = 1.0,
    final: float = 0.1,
    loss: Loss = next_token_loss,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `model` for `steps` batches with AdamW, warm-up and cosine decay, and return the loss of each step.

    learning_rate is the peak, reached after `warmup` steps; the last step has `final` times that. The norm of the
    gradient is clipped to `clip`. What parts of the model leave as their `auxiliary` is added to the loss, and isn't in
    what is returned. `on_step(step, loss)` is called after each step, counted from 0. The model is left
    in training mode.

    Raises `InputError` when the loss is not a finite number, or when the batches end before the steps.
    """
    optimizer = adamw(model, learning_rate=learning_rate, weight_decay=weight_decay, betas=betas)
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.train()
    losses: list[float] = []
    for step in range(steps):
        batch = next(batches, None)
        if batch is None:
            raise InputError(f"the batches ended after {step} of {steps} steps; give more, or repeat them")
        factor = learning_rate_factor(step, steps=steps, warmup=warmup, final=final)
        set_learning_rate(optimizer, learning_rate * factor)
        optimizer.zero_grad(set_to_none=True)
        value = loss(model, batch)
        (value + auxiliary_loss(model).to(value.device)).backward()
        number = value.item()
        if not math.isfinite(number):
            raise InputError(f"the loss became {number} at step {step}; try a lower learning rate or a longer warm-up")
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        losses.append(number)
        if on_step is not None:
            on_step(step, number)
    return losses
