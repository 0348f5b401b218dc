"""Sinusoidal absolute positions."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.positions.position import Hook, Position, angles


class Sinusoidal(Position):
    """Sines and cosines of geometrically spaced frequencies, added to the embedding.

        e(p)_{2i} = sin(p · base^(−2i/dim))      e(p)_{2i+1} = cos(p · base^(−2i/dim))      x_p ← x_p + scale · e(p)

    No parameters. `scale` makes up for embeddings that are not multiplied by sqrt(dim), as the paper's are: 1 is the
    paper's sum. dim must be even.

    Vaswani et al. 2017, arXiv 1706.03762.
    """

    hooks: ClassVar[tuple[Hook, ...]] = ("embed",)

    def __init__(self, *, base: float | int = 10000.0, scale: float | int = 1.0) -> None:
        super().__init__()
        if base <= 0:
            raise InputError(f"base must be positive, got {base}")
        self.base, self.scale = base, scale

    def embed(
        self, x: Float[Tensor, "batch length dim"], positions: Num[Tensor, "... length"]
    ) -> Float[Tensor, "batch length dim"]:
        """The embeddings plus the waves at their positions."""
        dim = x.shape[-1]
        if dim % 2:
            raise InputError(f"sinusoidal positions need an even dim, got {dim}")
        turns = angles(positions, dim, self.base)
        waves = torch.stack([turns.sin(), turns.cos()], dim=-1).flatten(-2)
        return x + (self.scale * waves).to(x.dtype)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"base={self.base}, scale={self.scale}"
