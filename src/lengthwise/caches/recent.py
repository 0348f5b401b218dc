"""The cache of what reads back a fixed number of its inputs: those inputs."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from lengthwise.caches.buffer import appended, leave
from lengthwise.contract import State


@dataclass(frozen=True)
class Recent(State):
    """The last n inputs of the document that goes on: n · channels numbers a row, whatever the length.

    inputs: [batch, n, channels]; 0 where the document has fewer.
    """

    inputs: Float[Tensor, "batch n channels"]

    def extend(self, new: Float[Tensor, "batch new channels"]) -> tuple[Float[Tensor, "batch joined channels"], Recent]:
        """The inputs with `new` behind them, and the last n of these. This one stays as it is."""
        (joined,), buffer = appended(self, (self.inputs,), (new,))
        after = Recent(joined[:, new.shape[1] :])
        leave(after, buffer)
        return joined, after

    def forget(self, rows: Bool[Tensor, " batch"]) -> Recent:
        """What is left where the document of these rows ends."""
        return Recent(self.inputs.masked_fill(rows[:, None, None], 0))
