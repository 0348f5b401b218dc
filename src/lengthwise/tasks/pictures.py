"""Pictures as sequences: crops of a photograph, read row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.tasks.task import require_at_least


@cache
def camera() -> np.ndarray:
    """The photograph of a cameraman that scikit-image holds, [512, 512] of 256 levels of grey.

    Raises InputError where scikit-image isn't installed.
    """
    try:
        from skimage import data
    except ImportError:
        raise InputError("pictures need the package scikit-image; pip install 'lengthwise[images]'") from None
    return data.camera()


@dataclass(frozen=True)
class Crops:
    """Square pieces of one picture, as sequences of grey levels.

        x_p = ⌊levels · grey(row + ⌊p / side⌋, column + p mod side) / 256⌋          0 ≤ p < side²

    Training takes pieces of the columns left of `split` alone, and testing of those from there on, so that no pixel is
    in both. picture: [rows, columns] of whole numbers below 256, the cameraman if None.
    Raises InputError for sizes that leave no room for a piece on either side.
    """

    side: int = 16
    levels: int = 32
    split: int = 384
    picture: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_at_least(side=(self.side, 1), levels=(self.levels, 2))
        if self.grey.ndim != 2:
            raise InputError(f"a picture is [rows, columns] of grey levels, got {list(self.grey.shape)}")
        rows, columns = self.grey.shape
        if not (self.side <= rows and self.side <= self.split <= columns - self.side):
            raise InputError(
                f"a picture of {rows} by {columns} split at column {self.split} has no room for pieces of"
                f" {self.side} by {self.side} on both sides"
            )

    @property
    def grey(self) -> np.ndarray:
        """The picture."""
        return camera() if self.picture is None else self.picture

    @property
    def vocab_size(self) -> int:
        """Number of different tokens, one for each level."""
        return self.levels

    @property
    def length(self) -> int:
        """Tokens of a piece."""
        return self.side**2

    def batches(self, batch: int, *, seed: int = 0, start: int = 0) -> Iterator[Int[Tensor, "batch length"]]:
        """Endless batches of pieces to train on, from step `start` on; a batch depends on seed and step alone."""
        require_at_least(batch=(batch, 1))
        step = start
        while True:
            yield self._cut(np.random.default_rng((seed, step)), batch, 0, self.split)
            step += 1

    def held_out(self, count: int, seed: int = 1_000_003) -> Int[Tensor, "count length"]:
        """Pieces to test on."""
        require_at_least(count=(count, 1))
        return self._cut(np.random.default_rng(seed), count, self.split, self.grey.shape[1])

    def _cut(self, rng: np.random.Generator, count: int, begin: int, end: int) -> Int[Tensor, "count length"]:
        """Pieces from random places between two columns."""
        within = np.arange(self.side)
        row = rng.integers(0, self.grey.shape[0] - self.side + 1, count)[:, None, None] + within[:, None]
        column = rng.integers(begin, end - self.side + 1, count)[:, None, None] + within
        grey = self.grey[row, column].astype(np.int64)
        return torch.from_numpy(grey * self.levels // 256).flatten(1)
