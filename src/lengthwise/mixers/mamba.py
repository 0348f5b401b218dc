"""Mamba: a state space recurrence that selects by the token what to keep, behind a short convolution and a gate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.errors import InputError
from lengthwise.ops.fused import work_dtype
from lengthwise.ops.selective_scan import selective_scan
from lengthwise.ops.short_convolution import short_convolution


@dataclass(frozen=True)
class MambaState(State):
    """The last inputs of the convolution, before its activation, and the state of the recurrence."""

    tail: Float[Tensor, "batch history channels"]
    h: Float[Tensor, "batch channels state"]


class Mamba(SequenceModule):
    """The Mamba block, which stands for both attention and the MLP.

        [x, z] = W_in u                       x, z: [batch, length, E], E = expansion · dim
        x = SiLU(conv(x))                     depthwise, causal, `kernel` taps, with bias
        [δ, B, C] = W_x x                     δ: R numbers, B and C: N numbers, shared by all channels
        Δ = softplus(W_Δ δ + b_Δ)             A = -exp(A_log), [E, N]
        h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t          y_t = C_t h_t + D x_t
        output = W_out (y ⊙ SiLU(z))

    expansion: E / dim. state_dim: N. kernel: taps of the convolution. dt_rank: R, ceil(dim / 16) if None. depth: the
    number of residual branches of the model; W_out begins divided by its root.
    A begins as -1, -2, ..., -N in each channel, D as ones, b_Δ so that the steps Δ begin between 0.001 and 0.1, evenly
    in their logarithm. A_log and D have no weight decay; A, Δ, the recurrence and the state stay out of half
    precision.

    State: (kernel - 1 + N) E numbers, whatever the length. The parameters have the names and shapes of `MambaMixer`
    in transformers. Gu and Dao 2023, arXiv 2312.00752. Raises InputError for sizes below 1.
    """

    inherits: ClassVar[tuple[str, ...]] = ("depth",)

    def __init__(
        self,
        dim: int,
        *,
        expansion: float = 2,
        state_dim: int = 16,
        kernel: int = 4,
        dt_rank: int | None = None,
        depth: int = 1,
    ):
        super().__init__()
        width = int(expansion * dim)
        rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        for name, size in {"expansion * dim": width, "state_dim": state_dim, "kernel": kernel, "dt_rank": rank}.items():
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        self.width, self.state_dim, self.kernel = width, state_dim, kernel
        self.split = (rank, state_dim, state_dim)
        self.in_proj = nn.Linear(dim, 2 * width, bias=False)
        self.conv1d = nn.Conv1d(width, width, kernel, groups=width)
        self.x_proj = nn.Linear(width, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(rank, width)
        self.A_log = nn.Parameter(torch.arange(1, state_dim + 1).float().log().repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        self.out_proj = nn.Linear(width, dim, bias=False)
        for undecayed in (self.A_log, self.D):
            undecayed.no_weight_decay = True  # type: ignore[attr-defined]
        self._initialise(rank, depth)

    @torch.no_grad()
    def _initialise(self, rank: int, depth: int) -> None:
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        step = torch.empty(self.width).uniform_(math.log(1e-3), math.log(0.1)).exp().clamp_min(1e-4)
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        self.out_proj.weight.div_(math.sqrt(depth))

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: MambaState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], MambaState]:
        """The block's output for every token, and the state after the last one."""
        starts = None if layout is None else layout.starts
        tail, h = (None, None) if state is None else (state.tail, state.h)
        x, z = self.in_proj(x).chunk(2, -1)
        x, tail = short_convolution(x, self.conv1d.weight[:, 0], self.conv1d.bias, tail, starts, "silu")
        y, h = self.recurrence(x, h, starts)
        return self.out_proj(y * F.silu(z)), MambaState(tail, h)

    def recurrence(
        self,
        x: Float[Tensor, "batch length channels"],
        h: Float[Tensor, "batch channels state"] | None,
        starts: Bool[Tensor, "batch length"] | None,
    ) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels state"]]:
        """y, the state space part without the gate, and the state after the last token."""
        dtype = work_dtype(x.dtype)
        low, B, C = self.selection(x)
        dt = F.softplus(F.linear(low, self.dt_proj.weight).to(dtype) + self.dt_proj.bias)
        return selective_scan(x, dt, -self.A_log.to(dtype).exp(), B, C, self.D, h, starts)

    def selection(
        self, x: Float[Tensor, "batch length channels"]
    ) -> tuple[
        Float[Tensor, "batch length rank"], Float[Tensor, "batch length state"], Float[Tensor, "batch length state"]
    ]:
        """δ, B and C of every token."""
        low, B, C = self.x_proj(x).split(self.split, -1)
        return low, B, C

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """4 E (kernel - 1 + N) bytes after any number of tokens."""
        return 4 * self.width * (self.kernel - 1 + self.state_dim)
