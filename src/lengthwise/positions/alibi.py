"""Attention with linear biases."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor

from lengthwise.ops.bias import Bias, relative
from lengthwise.positions.kept_row import KeptRow
from lengthwise.positions.position import Hook, Position


class ALiBi(Position):
    """Attention with linear biases: a penalty proportional to the distance, steeper in some heads than in others.

        b_h(p_i, p_j) = −m_h |p_i − p_j|

    The slopes m_h are fixed, a geometric series: see `slopes`. Nothing is learned, and the bias is the same at any
    length, so a model goes on working beyond the trained one. Both directions count alike where attention is full.

    Press et al. 2021, arXiv 2108.12409.
    """

    hooks: ClassVar[tuple[Hook, ...]] = ("bias",)
    by_distance = True

    def __init__(self) -> None:
        super().__init__()
        self.kept = KeptRow()

    def bias(
        self,
        q_positions: Num[Tensor, "... queries"],
        k_positions: Num[Tensor, "... keys"],
        heads: int,
        sums: tuple[Tensor, Tensor] | None = None,  # noqa: ARG002
    ) -> Bias:
        """−m_h times the distance."""
        return relative(partial(penalty, heads=heads), q_positions, k_positions, heads)

    def last_bias(
        self, keys: int, heads: int, device: torch.device, sums: tuple[Tensor, Tensor] | None = None
    ) -> Bias | None:
        """The same, from what is kept."""
        kept = self.kept.bias(partial(penalty, heads=heads), keys, heads, device)
        return super().last_bias(keys, heads, device, sums) if kept is None else kept


def penalty(distance: Num[Tensor, "rows queries keys"], heads: int) -> Float[Tensor, "rows heads queries keys"]:
    """−m_h |d| for every head."""
    distance = distance.abs() if distance.dtype == torch.float64 else distance.abs().float()
    return distance.unsqueeze(1) * -slopes(heads).to(distance).view(-1, 1, 1)


def slopes(heads: int) -> Float[Tensor, " heads"]:
    """m_h for h = 0 .. heads − 1, in float64.

    For n = 2^k heads, m_h = 2^(−8(h+1)/n). Otherwise the slopes of the largest power of two below, followed by as many
    as are missing from every other slope of twice that power, from the steepest on: the rule of the authors' code.
    """
    power = 1 << (heads.bit_length() - 1)
    series = 2.0 ** (-8 * torch.arange(1, power + 1, dtype=torch.float64) / power)
    between = 2.0 ** (-4 * torch.arange(1, 2 * power, 2, dtype=torch.float64) / power)
    return torch.cat([series, between[: heads - power]])
