"""Learned absolute positions."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.errors import InputError
from lengthwise.positions.position import Hook, Position


class Learned(Position):
    """A learned vector for each position, added to the embedding.

        x_p ← x_p + E_p          E: [length, dim], initially N(0, 0.02)

    There is no vector for a position at or beyond `length`: InputError says so. Positions are whole numbers.

    Gehring et al. 2017, arXiv 1705.03122; used by BERT and GPT-2.
    """

    hooks: ClassVar[tuple[Hook, ...]] = ("embed",)

    def __init__(self, dim: int, *, length: int = 1024) -> None:
        super().__init__()
        if length < 1:
            raise InputError(f"length must be at least 1, got {length}")
        self.length = length
        self.weight = nn.Parameter(torch.randn(length, dim) * 0.02)

    def embed(
        self, x: Float[Tensor, "batch length dim"], positions: Num[Tensor, "... length"]
    ) -> Float[Tensor, "batch length dim"]:
        """The embeddings plus the vectors of their positions."""
        if positions.is_floating_point():
            raise InputError("learned positions are whole numbers, got fractions; rope and sinusoidal take fractions")
        # Reading the values would leave a compiled graph, in which the table look-up itself fails out of range.
        if not torch.compiler.is_compiling() and positions.numel():
            low, high = (int(bound) for bound in positions.aminmax())
            if low < 0 or high >= self.length:
                raise InputError(
                    f"learned positions end at {self.length - 1}, got position {low if low < 0 else high}; "
                    f"build the model with learned(length={high + 1}) or use a position that extends, such as rope"
                )
        return x + functional.embedding(positions.long(), self.weight).to(x.dtype)
