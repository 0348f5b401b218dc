"""Views of a sequence as a table of segments, one below the other, for attention along its rows and its columns.

token b w + l is in row b and column l; a sequence that isn't a whole number of rows is filled up at its end
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Rows:
    """[batch, tokens, …] as [batch, rows, size, …]: those of a row side by side.

    rows, columns: from which one up to which.
    """

    size: int
    rows: tuple[int, int | None] = (0, None)
    columns: tuple[int, int | None] = (0, None)

    def __call__(self, x: Float[Tensor, "batch tokens ..."]) -> Float[Tensor, "batch rows columns ..."]:
        """The rows."""
        return x.unflatten(1, (-1, self.size))[:, slice(*self.rows), slice(*self.columns)]


@dataclass(frozen=True)
class Columns(Rows):
    """[batch, tokens, …] as [batch, size, rows, …]: those of a column side by side."""

    def __call__(self, x: Float[Tensor, "batch tokens ..."]) -> Float[Tensor, "batch columns rows ..."]:
        """The columns."""
        return super().__call__(x).transpose(1, 2)


@dataclass(frozen=True)
class Stretch:
    """Tokens from `begin` to `end` in one row, or with size=1 each in a row of its own."""

    begin: int = 0
    end: int | None = None
    size: int | None = None

    def __call__(self, x: Float[Tensor, "batch tokens ..."]) -> Float[Tensor, "batch rows size ..."]:
        """The rows."""
        part = x[:, self.begin : self.end]
        return part[:, None] if self.size is None else part.unflatten(1, (-1, self.size))


@dataclass(frozen=True)
class Halves:
    """Of `count` blocks of 2 `size` tokens from `begin` on the first halves, or the second."""

    begin: int
    count: int
    size: int
    second: bool = False

    def __call__(self, x: Float[Tensor, "batch tokens ..."]) -> Float[Tensor, "batch count size ..."]:
        """The halves."""
        blocks = x[:, self.begin : self.begin + 2 * self.size * self.count].unflatten(1, (self.count, 2 * self.size))
        return blocks[:, :, self.size :] if self.second else blocks[:, :, : self.size]


def filled(x: Float[Tensor, "batch tokens heads dim"], size: int) -> Float[Tensor, "batch more heads dim"]:
    """A sequence with zeros behind it, up to a whole number of rows."""
    missing = -x.shape[1] % size
    return functional.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
