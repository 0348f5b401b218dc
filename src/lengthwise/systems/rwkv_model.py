"""RWKV-4 as a language model: where its paper lets it begin and how it trains it, for the systems built on it.

    model = build(layers(3), dim=128)
    train(model, corpus.batches(256, 16, seed), steps=1000)

The layers know where their own weights begin; embedding, head and the settings of the optimiser are here. The learning
rate falls along a cosine in place of the paper's exponential, from and to the same rates.

Peng et al. 2023, arXiv 2305.13048.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from lengthwise.contract import SequenceModule
from lengthwise.models.language_model import LanguageModel
from lengthwise.training.fit import Loss, bounded_next_token_loss, fit

LEARNING_RATE = 2e-3


def layers(count: int) -> str:
    """The expression of so many layers."""
    return f"layernorm + {count}*(rwkv + rwkv_channels)"


def build(
    expression: str,
    dim: int,
    *,
    vocab_size: int = 256,
    learning_rate: float = LEARNING_RATE,
    parts: Mapping[str, type[SequenceModule]] | None = None,
) -> LanguageModel:
    """A model of these layers with LayerNorms and no position, its embedding and head at the paper's start.

    The embedding is uniform within ± the learning rate to come, since the LayerNorm after it gives it its scale: small
    steps can then still turn it anywhere. The head is orthogonal.
    """
    model = LanguageModel(vocab_size, dim, expression, position="none", norm="layernorm", parts=parts)
    nn.init.uniform_(model.embedding.weight, -learning_rate, learning_rate)
    nn.init.orthogonal_(model.head.weight, gain=0.5 * math.sqrt(max(vocab_size / dim, 1)))
    return model


def train(
    model: nn.Module,
    batches: Iterator[Any],
    *,
    steps: int,
    learning_rate: float = LEARNING_RATE,
    last_rate: float = 1e-4,
    warmup: int = 0,
    loss: Loss = bounded_next_token_loss,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train with Adam, betas (0.9, 0.99), without weight decay, from `learning_rate` to `last_rate`; the losses."""
    return fit(
        model,
        batches,
        steps=steps,
        learning_rate=learning_rate,
        final=last_rate / learning_rate,
        warmup=warmup,
        weight_decay=0.0,
        betas=(0.9, 0.99),
        loss=loss,
        on_step=on_step,
    )
