"""A bias of distances for tokens that are decoded one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.ops import fused
from lengthwise.ops.bias import Relative
from lengthwise.positions.position import holds

SPARE = 256
"""The least number of distances that a row which grows gets beyond those that are asked for."""


class KeptRow:
    """t of the distances −n + 1 … 0, from which the last of n tokens reads its bias without computing it anew.

    It is kept for as long as the parameters stay what they are, where no gradients are wanted, and grows ahead of the
    tokens.
    """

    def __init__(self) -> None:
        self.row: Float[Tensor, "heads span"] | None = None
        self.made: tuple[Any, ...] = ()

    def bias(
        self,
        of: Callable[..., Float[Tensor, "1 heads 1 span"]],
        keys: int,
        heads: int,
        device: torch.device,
        parameters: tuple[Tensor, ...] = (),
    ) -> Relative | None:
        """b of the last of so many tokens; None where nothing may be kept. of: t, as `ops.bias.relative` takes it."""
        if fused.needs_graph(*parameters):
            return None
        made = (heads, device, *holds(parameters))
        if self.row is None or made != self.made or self.row.shape[1] < keys:
            span: Int[Tensor, " span"] = torch.arange(1 - keys - max(SPARE, keys // 4), 1, device=device)
            self.row, self.made = of(span[None, None], *parameters)[0, :, 0].contiguous(), made
        return Relative(self.row.narrow(1, self.row.shape[1] - keys, keys), 1)
