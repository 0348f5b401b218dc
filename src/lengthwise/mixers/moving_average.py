"""Exponential moving averages of each channel, several at a time, as mixers of their own and as parts of others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.errors import InputError, unknown
from lengthwise.ops.ema import ema
from lengthwise.ops.fused import work_dtype


@dataclass(frozen=True)
class DampedEMAState(State):
    """The moving averages, before the weights of what goes in and of what is read out."""

    averages: Float[Tensor, "batch dim states"]


class DampedEMA(SequenceModule):
    """The multi-dimensional damped moving average of Mega.

        h_t = p ⊙ β x_t + (1 − p ⊙ δ) ⊙ h_{t−1}          y_t = Σ_n η_n h_{t,n} / √N + ω x_t

    for each channel of x, with N numbers each of p = σ(alpha), δ = σ(delta), β (expansion) and η (projection).

    states: N. causal: averages the past alone; otherwise y has a second average with weights of its own, of what comes
    after each token.
    alpha and delta begin as N(0, 0.2), β as N(±1, 0.02), its sign alternating over n, η and ω as N(0, 1); none has
    weight decay. The average is computed in float32 or wider.

    State: h, N dim numbers, whatever the length. Ma et al. 2022, arXiv 2209.10655.
    Raises InputError for `states` below 1.
    """

    inherits: ClassVar[tuple[str, ...]] = ("causal",)

    def __init__(self, dim: int, *, states: int = 16, causal: bool = True) -> None:
        super().__init__()
        if states < 1:
            raise InputError(f"states must be at least 1, got {states}")
        self.causal, self.scale = causal, 1 / math.sqrt(states)
        shape = (1 if causal else 2, dim, states)
        sign = 1 - 2 * (torch.arange(states) % 2)
        self.alpha = nn.Parameter(0.2 * torch.randn(shape))
        self.delta = nn.Parameter(0.2 * torch.randn(shape))
        self.beta = nn.Parameter(sign + 0.02 * torch.randn(shape))
        self.eta = nn.Parameter(torch.randn(shape))
        self.omega = nn.Parameter(torch.randn(dim))
        for parameter in self.parameters():
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: DampedEMAState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], DampedEMAState | None]:
        """The average of every token, and the averages after the last one, None where it isn't causal."""
        q, w = self.coefficients(x.dtype)
        starts = None if layout is None else layout.starts
        y, averages = ema(x, q[0], w[0], None if state is None else state.averages, starts)
        y = y + self.omega.to(x.dtype) * x
        if self.causal:
            return y, DampedEMAState(averages)
        ends = None if layout is None else layout.reversed().starts
        back, _ = ema(x.flip(1), q[1], w[1], None, ends)
        return y + back.flip(1) - w[1].sum(-1).to(x.dtype) * x, None

    def coefficients(
        self, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "directions dim states"], Float[Tensor, "directions dim states"]]:
        """1 − p ⊙ δ, and what becomes of an input from going in to being read out, η ⊙ β ⊙ p / √N."""
        dtype = work_dtype(dtype)
        alpha, delta, beta, eta = (v.to(dtype) for v in (self.alpha, self.delta, self.beta, self.eta))
        p = torch.sigmoid(alpha)
        return 1 - p * torch.sigmoid(delta), self.scale * eta * beta * p

    def taps(self, count: int) -> Float[Tensor, "count dim"]:
        """The same average, without ω, as the taps of a convolution, the first on the present token.

        K_l = Σ_n η_n β_n p_n (1 − p_n δ_n)^l / √N
        """
        q, w = self.coefficients(self.alpha.dtype)
        side = math.isqrt(max(count - 1, 0)) + 1
        lags = torch.arange(side, device=q.device, dtype=q.dtype)
        rate = q[0].log()[..., None]
        # q^(side a + b) = q^(side a) q^b, so that few powers are taken and the rest is a matrix product.
        coarse, fine = (side * lags * rate).exp(), w[0][..., None] * (lags * rate).exp()
        return (coarse.mT @ fine).flatten(1)[:, :count].t()

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """N numbers a channel in float32 or wider, after any number of tokens."""
        return self.alpha.numel() * work_dtype(self.alpha.dtype).itemsize if self.causal else 0


PHASES = ("kept", "all")
"""What a complex average turns in each step: what it keeps, or what it takes in as well."""


@dataclass(frozen=True)
class ComplexEMAState(State):
    """Real and imaginary parts of the moving averages, before the weights of what goes in and of what is read out."""

    averages: Float[Tensor, "batch dim states 2"]


class ComplexEMA(SequenceModule):
    """The complex moving average of Megalodon, whose numbers turn while they fade.

        h_t = p x_t + q ⊙ h_{t−1}          y_t = Re Σ_n γ_n h_{t,n} / √N + ω x_t
        q_n = (1 − p δ) e^{i φ_n}          φ_n = n θ 2π / N,  n = 1 … N

    for each channel of x, with p = σ(alpha) and δ = σ(delta), N numbers each, and one θ = σ(theta).

    states: N. phase: "kept" as in the published code; "all" turns the input too, p e^{i φ_n} x_t, as in the paper.
    alpha and delta begin as N(0, 0.2); θ spread evenly in its logarithm from 1 to 1 / dim, at random over the channels;
    γ as N(0, 1), real; ω as N(0, 0.25), at most 1. None has weight decay. Computed in float32 or wider.

    State: h, N dim complex numbers, whatever the length. Ma et al. 2024, arXiv 2404.08801.
    Raises InputError for `states` below 1, and an unknown phase.
    """

    def __init__(self, dim: int, *, states: int = 16, phase: str = "kept") -> None:
        super().__init__()
        if states < 1:
            raise InputError(f"states must be at least 1, got {states}")
        if phase not in PHASES:
            raise unknown("phase", phase, PHASES)
        self.phase, self.scale = phase, 1 / math.sqrt(states)
        self.alpha = nn.Parameter(0.2 * torch.randn(dim, states))
        self.delta = nn.Parameter(0.2 * torch.randn(dim, states))
        spread = torch.exp(-math.log(dim) / dim * torch.arange(1, dim + 1))
        self.theta = nn.Parameter(torch.logit(spread[torch.randperm(dim)], eps=1e-6)[:, None])
        self.gamma = nn.Parameter(torch.stack([torch.randn(dim, states), torch.zeros(dim, states)], -1))
        self.omega = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.25, a=-1, b=1))
        for parameter in self.parameters():
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: ComplexEMAState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], ComplexEMAState]:
        """The average of every token, and the averages after the last one."""
        q, w = self.coefficients(x.dtype)
        before = None if state is None else torch.complex(*state.averages.unbind(-1))
        y, averages = ema(x, q, w, before, None if layout is None else layout.starts)
        return torch.addcmul(y, self.omega.to(x.dtype), x), ComplexEMAState(torch.view_as_real(averages))

    def coefficients(self, dtype: torch.dtype) -> tuple[Complex[Tensor, "dim states"], Complex[Tensor, "dim states"]]:
        """q, and what becomes of an input from going in to being read out, γ p / √N, turned where the phase is all."""
        dtype = work_dtype(dtype)
        alpha, delta, theta, gamma = (v.to(dtype) for v in (self.alpha, self.delta, self.theta, self.gamma))
        p, number = torch.sigmoid(alpha), torch.arange(1, alpha.shape[1] + 1, device=alpha.device, dtype=dtype)
        turn = number * torch.sigmoid(theta) * (2 * math.pi / alpha.shape[1])
        q = torch.polar(1 - p * torch.sigmoid(delta), turn)
        w = torch.complex(*(self.scale * p[..., None] * gamma).unbind(-1))
        return q, w if self.phase == "kept" else w * torch.polar(torch.ones_like(turn), turn)

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """2 N numbers a channel in float32 or wider, after any number of tokens."""
        return self.gamma.numel() * work_dtype(self.gamma.dtype).itemsize

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"{self.alpha.shape[0]}, states={self.alpha.shape[1]}, phase={self.phase}"
