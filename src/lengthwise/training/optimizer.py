"""The optimiser and its schedule: AdamW, linear warm-up, cosine decay."""

from __future__ import annotations

import math

import torch
from torch import nn

from lengthwise.errors import InputError


def learning_rate_factor(step: int, *, steps: int, warmup: int, final: float = 0.1) -> float:
    """The factor on the peak learning rate at `step`, counted from 0.

        (t + 1) / w                                     t < w
        f + (1 − f) (1 + cos(π (t − w) / (T − w))) / 2  w ≤ t < T

    with T = steps, w = warmup, f = final. After T it stays at f.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def decays(parameter: nn.Parameter) -> bool:
    """Whether weight decay acts on a parameter: matrices and larger, unless marked `no_weight_decay = True`."""
    return parameter.ndim >= 2 and not getattr(parameter, "no_weight_decay", False)


def adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) in two groups, with and without weight decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("the model has no trainable parameters; nothing to train")
    groups = [
        {"params": [p for p in parameters if decays(p)], "weight_decay": weight_decay},
        {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group of the optimiser the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
