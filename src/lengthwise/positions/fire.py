"""Functional interpolation of relative positions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from lengthwise.errors import InputError
from lengthwise.ops import fused
from lengthwise.ops.backend import resolve
from lengthwise.ops.bias import Bias
from lengthwise.ops.fire_bias import FireBias, last_row
from lengthwise.positions.kept_row import SPARE
from lengthwise.positions.position import Hook, Position, heads_given, holds, require_heads

EPS = 1e-6
"""Added to ψ(max(L, i)), which is 0 where L has been learned away and i = 0."""


class FIRE(Position):
    """A small network of how far a key is on the way back to the beginning, measured in logarithms.

        b_h(i, j) = f_θ(z_ij)_h      z_ij = ψ(i − j) / (ψ(max(L, i)) + ε)      ψ(x) = log(|c| x + 1)      L = |m| L₀
        f_θ(z) = W_2 relu(w_1 z + b_1) + b_2

    z lies in [0, 1] at any length. Before position L it tells distances apart as they are, from there on they are
    interpolated. Since z depends on the query, nothing of it can be kept with the keys. With causal=False, an
    extension, ψ(|i − j|) is divided by ψ(max(L, T − 1)), T being the length of the document.

    heads: the number of query heads of the attention that it serves. width: of the network. c, length: initial c, and
    L₀, about the length that is trained at or a quarter of it; m begins as 1.
    shared: one set of weights for all layers of a model (FIRE-S); else each has its own.

    Computed in float32, or in float64 with weights of that dtype, and as cheaply as the form of f_θ allows: see
    `FireBias`. w_1 and b_1 begin uniform in ±1, W_2 and b_2 in ±1/√width, as PyTorch's linear maps of that size.
    Raises InputError without heads, for heads that aren't the attention's, and for sizes, c and length that aren't
    above 0. Li et al. 2023, arXiv 2310.04418.
    """

    hooks: ClassVar[tuple[Hook, ...]] = ("bias",)

    def __init__(
        self,
        *,
        heads: int | None = None,
        causal: bool = True,
        width: int = 32,
        c: float = 0.1,
        length: float | int = 512,
        shared: bool = False,
    ) -> None:
        super().__init__()
        heads = heads_given("fire", "a bias", heads)
        if width < 1:
            raise InputError(f"width must be at least 1, got {width}")
        for name, value in {"c": c, "length": length}.items():
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be above 0, got {value}")
        self.heads, self.causal, self.width, self.initial_c, self.length = heads, causal, width, c, length
        self.per_layer = not shared
        self.hidden_weight, self.hidden_bias = (nn.Parameter(torch.empty(width)) for _ in range(2))
        self.out_weight, self.out_bias = nn.Parameter(torch.empty(heads, width)), nn.Parameter(torch.empty(heads))
        self.c, self.m = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))
        self.kept: Kept | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        for parameter in (self.hidden_weight, self.hidden_bias):
            nn.init.uniform_(parameter, -1, 1)
        for parameter in (self.out_weight, self.out_bias):
            nn.init.uniform_(parameter, -(self.width**-0.5), self.width**-0.5)
        nn.init.constant_(self.c, self.initial_c)
        nn.init.ones_(self.m)

    def bias(
        self,
        q_positions: Num[Tensor, "... queries"],
        k_positions: Num[Tensor, "... keys"],
        heads: int,
        sums: tuple[Tensor, Tensor] | None = None,  # noqa: ARG002
    ) -> FireBias:
        """f_θ(z)."""
        require_heads("fire", "biases", self.heads, heads)
        q_positions, k_positions = (p.expand(1, -1) if p.ndim == 1 else p for p in (q_positions, k_positions))
        dtype = torch.promote_types(self.c.dtype, torch.float32)
        c, threshold = self.c.to(dtype).abs(), self.m.to(dtype).abs() * self.length
        n = torch.maximum(threshold, (q_positions if self.causal else ends(q_positions)).to(dtype))
        rate = 1 / (torch.log1p(c * n) + EPS)
        return FireBias(c, rate, *self.pieces(dtype), q_positions, k_positions)

    def last_bias(
        self, keys: int, heads: int, device: torch.device, sums: tuple[Tensor, Tensor] | None = None
    ) -> Bias | None:
        """The same, from what is kept of f_θ and of ψ for as long as the parameters stay what they are."""
        require_heads("fire", "biases", self.heads, heads)
        parameters = (self.hidden_weight, self.hidden_bias, self.out_weight, self.out_bias, self.c, self.m)
        if resolve("auto", ("numba", "reference")) != "numba" or fused.needs_graph(*parameters) or device.type != "cpu":
            return super().last_bias(keys, heads, device, sums)
        made = holds(parameters)
        if self.kept is None or self.kept.made != made:
            dtype = torch.promote_types(self.c.dtype, torch.float32)
            slopes, offsets, kinks = self.pieces(dtype)
            c, threshold = abs(float(self.c)), abs(float(self.m)) * self.length
            self.kept = Kept(made, c, threshold, slopes.T.contiguous(), offsets.T.contiguous(), kinks)
        kept = self.kept
        rate = 1 / (math.log1p(kept.c * max(kept.threshold, keys - 1)) + EPS)
        return last_row(kept.psi(keys), rate, kept.slopes, kept.offsets, kept.kinks, keys)

    def pieces(
        self, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "pieces heads"], Float[Tensor, "pieces heads"], Float[Tensor, " width"]]:
        """f_θ as what it is, a function of one number that is linear between the kinks z_m = −b_m / w_m at which units
        switch: slope and offset of each piece for each head, and the kinks in order."""
        w, b = self.hidden_weight.to(dtype), self.hidden_bias.to(dtype)
        kinks = (-b / w).detach().masked_fill(w.detach() == 0, math.inf)
        kinks, order = kinks.sort()
        passed = torch.arange(self.width + 1, device=w.device)[:, None] > order.argsort()
        on = torch.where(w > 0, passed, torch.where(w < 0, ~passed, b > 0)).to(dtype)
        # Not a matrix product, which autocast would round.
        slopes, offsets = ((on * x)[:, None] * self.out_weight.to(dtype) for x in (w, b))
        return slopes.sum(2), offsets.sum(2) + self.out_bias.to(dtype), kinks

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return (
            f"heads={self.heads}, causal={self.causal}, width={self.width}, c={self.initial_c}, length={self.length}, "
            f"shared={not self.per_layer}"
        )


class Kept:
    """What does not change from token to token: c, L, and A, B and kinks of f_θ, and ψ of as many distances as were
    asked for, and more. made: what it was made of."""

    def __init__(
        self, made: tuple[Any, ...], c: float, threshold: float, slopes: Tensor, offsets: Tensor, kinks: Tensor
    ) -> None:
        self.made, self.c, self.threshold = made, c, threshold
        self.slopes, self.offsets, self.kinks = slopes, offsets, kinks
        self.known = kinks[:0]

    def psi(self, count: int) -> Float[Tensor, " span"]:
        """ψ of at least so many distances, from 0 on."""
        if len(self.known) < count:
            span = torch.arange(count + max(SPARE, count // 4), dtype=self.kinks.dtype)
            self.known = torch.log1p(self.c * span)
        return self.known


def ends(positions: Num[Tensor, "rows length"]) -> Num[Tensor, "rows length"]:
    """The last position of the document that each token is in, for documents that follow each other in a row."""
    if not positions.shape[1]:
        return positions
    index = torch.arange(positions.shape[1], device=positions.device)
    last = torch.ones_like(positions, dtype=torch.bool)
    last[:, :-1] = positions.diff(dim=1) <= 0
    beyond = torch.where(last, index, positions.shape[1])
    return positions.gather(1, beyond.flip(1).cummin(1).values.flip(1))
