"""Learned positions of a sequence that is laid out in rows."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.errors import InputError
from lengthwise.positions.position import Hook, Position


class Grid(Position):
    """A learned vector for the row and one for the column of each position, added to the embedding.

        x_p ← x_p + R_{⌊p / width⌋} + C_{p mod width}          R: [height, dim], C: [width, dim]

    For pictures read row by row, and for anything with a period. R and C begin as N(0, 0.125 / √(2 dim)).
    width: places of a row. height: rows; a position in a row beyond them is an InputError, as is one that isn't whole.

    Child et al. 2019, arXiv 1904.10509.
    """

    hooks: ClassVar[tuple[Hook, ...]] = ("embed",)

    def __init__(self, dim: int, *, width: int = 64, height: int = 64) -> None:
        super().__init__()
        for name, size in (("width", width), ("height", height)):
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        self.width, self.height = width, height
        std = 0.125 / (2 * dim) ** 0.5
        self.rows = nn.Parameter(torch.randn(height, dim) * std)
        self.columns = nn.Parameter(torch.randn(width, dim) * std)

    def embed(
        self, x: Float[Tensor, "batch length dim"], positions: Num[Tensor, "... length"]
    ) -> Float[Tensor, "batch length dim"]:
        """The embeddings plus the vectors of their rows and columns."""
        if positions.is_floating_point():
            raise InputError("positions of a grid are whole numbers, got fractions; rope and sinusoidal take fractions")
        if not torch.compiler.is_compiling() and positions.numel():
            low, high = (int(bound) for bound in positions.aminmax())
            if low < 0 or high >= self.width * self.height:
                raise InputError(
                    f"a grid of {self.height} rows of {self.width} ends at {self.width * self.height - 1}, got position"
                    f" {low if low < 0 else high}; build it with height={high // self.width + 1}"
                )
        row = positions.long().div(self.width, rounding_mode="floor")
        added = functional.embedding(row, self.rows) + functional.embedding(positions.long() % self.width, self.columns)
        return x + added.to(x.dtype)
