"""The cache of what reads all of its earlier inputs: those inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lengthwise.caches.buffer import appended, leave
from lengthwise.contract import State


@dataclass(frozen=True)
class History(State):
    """The inputs seen, as far back as the longest document that goes on: L · channels numbers a row.

    inputs: [batch, seen, channels]; 0 before the document that goes on, in rows in which it is shorter than in another.
    """

    inputs: Float[Tensor, "batch seen channels"]

    @staticmethod
    def empty(new: Float[Tensor, "batch new channels"]) -> History:
        """A history that has seen nothing, for inputs like these."""
        return History(new[:, :0])

    def extend(
        self, new: Float[Tensor, "batch new channels"], starts: Bool[Tensor, "batch new"] | None = None
    ) -> tuple[Float[Tensor, "batch joined channels"], History]:
        """The inputs with `new` behind them, and the history after them. This one stays as it is.

        starts: True where one of the new inputs begins a document. What was before the last start of a row isn't kept.
        """
        (joined,), buffer = appended(self, (self.inputs,), (new,))
        compiling = torch.compiler.is_compiling()
        if starts is None or not (compiling or starts.any()):
            after = History(joined)
            leave(after, buffer)
            return joined, after
        later = starts.flip(1).cumsum(1).flip(1) - starts.long()  # documents that begin after each new input
        ended = torch.cat([starts.any(1, keepdim=True).expand(-1, self.inputs.shape[1]), later > 0], 1)
        first = 0 if compiling else int(ended.sum(1).min())  # what has ended lies before what goes on
        return joined, History(joined[:, first:].masked_fill(ended[:, first:, None], 0))
