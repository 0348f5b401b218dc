"""Initial values that many parts share."""

from __future__ import annotations

from torch import nn


def begin_normal(*layers: nn.Linear | nn.Conv1d, std: float = 0.02) -> None:
    """Draw the weights of maps from N(0, std), one map after the other, and set their biases to 0."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
