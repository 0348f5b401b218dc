"""Mamba-2: a matrix of state for each head with one decay, which makes the recurrence linear attention."""

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
from lengthwise.mixers.heads import default_heads
from lengthwise.mixers.state_control import Memory, StateControl
from lengthwise.ops.fused import work_dtype
from lengthwise.ops.linear_attention import CHUNK
from lengthwise.ops.short_convolution import short_convolution


@dataclass(frozen=True)
class Mamba2State(State):
    """The last inputs of the convolution, before its activation, and what the recurrence keeps: S, or what a state
    control keeps in its place."""

    tail: Float[Tensor, "batch history channels"]
    memory: Memory


class GatedNorm(nn.Module):
    """RMSNorm(y ⊙ SiLU(z)), apart for each group of channels, computed in float32. eps: added to the mean square."""

    def __init__(self, width: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.groups, self.eps = groups, eps

    def forward(
        self, y: Float[Tensor, "batch length channels"], z: Float[Tensor, "batch length channels"]
    ) -> Float[Tensor, "batch length channels"]:
        """The gate first, the norm after it; in the dtype of z."""
        gated = (y * F.silu(z.to(y.dtype))).unflatten(-1, (self.groups, -1))
        return (F.rms_norm(gated, gated.shape[-1:], eps=self.eps).flatten(2) * self.weight).to(z.dtype)


class Mamba2(SequenceModule):
    """The Mamba-2 block, which stands for both attention and the MLP.

        [z, x, B, C, δ] = W_in u               z, x: [batch, length, E]; B, C: N numbers a group; δ: one a head
        [x, B, C] = SiLU(conv([x, B, C]))      depthwise, causal, `kernel` taps, with bias
        Δ = softplus(δ + b_Δ)                  A = -exp(A_log), one number a head
        S_t = exp(Δ_t A) S_{t-1} + B_t (Δ_t x_t)ᵀ          y_t = S_tᵀ C_t + D x_t          for each head of x
        output = W_out RMSNorm(y ⊙ SiLU(z))                the norm apart for each group, eps 1e-5

    expansion: E / dim. head_dim: the width P of a head; 64, or the nearest that divides E, where it is None.
    state_dim: N. groups: how many B and C there are, each shared by heads in a row. kernel: taps of the convolution.
    state_control: what becomes of the state beyond the length of training, see `lengthwise.mixers.state_control`.
    depth: the number of residual branches of the model; W_out begins divided by its root.
    A begins evenly between -16 and -1, D as ones, b_Δ so that the steps Δ begin between 0.001 and 0.1, evenly in their
    logarithm. A_log, D and b_Δ have no weight decay; Δ, the recurrence and the state stay out of half precision.

    State: (kernel - 1) (E + 2 groups N) + N E numbers, whatever the length. The parameters have the names and shapes of
    `Mamba2Mixer` in transformers. Dao and Gu 2024, arXiv 2405.21060.
    Raises InputError for sizes below 1, heads that don't divide E, and groups that don't divide the heads.
    """

    inherits: ClassVar[tuple[str, ...]] = ("depth",)
    chunk = CHUNK

    def __init__(
        self,
        dim: int,
        *,
        expansion: float = 2,
        head_dim: int | None = None,
        state_dim: int = 128,
        groups: int = 1,
        kernel: int = 4,
        state_control: StateControl | None = None,
        depth: int = 1,
    ) -> None:
        super().__init__()
        width = int(expansion * dim)
        sizes = {"expansion * dim": width, "head_dim": head_dim, "state_dim": state_dim, "groups": groups}
        for name, size in {**sizes, "kernel": kernel}.items():
            if size is not None and size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        self.head_dim = width // default_heads(width) if head_dim is None else head_dim
        if width % self.head_dim:
            raise InputError(f"head_dim must divide expansion * dim: got head_dim={head_dim} and {width}")
        self.heads, self.groups = width // self.head_dim, groups
        if self.heads % groups:
            raise InputError(f"groups must divide the {self.heads} heads of {self.head_dim}, got groups={groups}")
        self.width, self.state_dim, self.kernel = width, state_dim, kernel
        self.channels = width + 2 * groups * state_dim
        self.in_proj = nn.Linear(dim, width + self.channels + self.heads, bias=False)
        self.conv1d = nn.Conv1d(self.channels, self.channels, kernel, groups=self.channels)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedNorm(width, groups)
        self.out_proj = nn.Linear(width, dim, bias=False)
        self.control(state_control)
        for undecayed in (self.dt_bias, self.A_log, self.D):
            undecayed.no_weight_decay = True  # type: ignore[attr-defined]
        self._initialise(depth)

    @torch.no_grad()
    def _initialise(self, depth: int) -> None:
        self.A_log.uniform_(1, 16).log_()
        step = torch.empty(self.heads).uniform_(math.log(1e-3), math.log(0.1)).exp().clamp_min(1e-4)
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        self.out_proj.weight.div_(math.sqrt(depth))

    def control(self, state_control: StateControl | None) -> None:
        """Replace the state control, without any training; None leaves the recurrence as it is."""
        self.state_control = StateControl() if state_control is None else state_control
        window = self.state_control.window
        self.receptive_field = None if window is None else window + self.kernel - 1
        self.compiles = self.state_control.compiles  # type: ignore[misc]

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: Mamba2State | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Mamba2State]:
        """The block's output for every token, and the state after the last one."""
        starts = None if layout is None else layout.starts
        tail, memory = (None, None) if state is None else (state.tail, state.memory)
        z, mixed, low = self.in_proj(x).split((self.width, self.channels, self.heads), -1)
        mixed, tail = short_convolution(mixed, self.conv1d.weight[:, 0], self.conv1d.bias, tail, starts, "silu")
        y, memory = self.recurrence(mixed, low, memory, starts)
        return self.out_proj(self.norm(y, z)), Mamba2State(tail, memory)

    def recurrence(
        self,
        mixed: Float[Tensor, "batch length channels"],
        low: Float[Tensor, "batch length heads"],
        memory: Memory | None,
        starts: Bool[Tensor, "batch length"] | None,
    ) -> tuple[Float[Tensor, "batch length width"], Memory]:
        """y, the state space part without the gate, and what it goes on from after the last token.

        mixed: x, B and C after the convolution. low: δ.
        """
        dtype, shared = work_dtype(mixed.dtype), self.groups * self.state_dim
        x, keys, queries = mixed.split((self.width, shared, shared), -1)
        x = x.unflatten(-1, (self.heads, -1)).to(dtype)
        keys, queries = (part.unflatten(-1, (self.groups, -1)) for part in (keys, queries))
        dt = F.softplus(low.to(dtype) + self.dt_bias)
        decay = dt * -self.A_log.to(dtype).exp()
        y, memory = self.state_control.run((queries, keys, x * dt.unsqueeze(-1), decay), memory, starts)
        return torch.addcmul(y, x, self.D.to(dtype).unsqueeze(-1)).flatten(2), memory

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """The same after any number of tokens: 4 bytes a number, of the convolution's tail and of the recurrence."""
        shape = (self.heads, self.head_dim, self.groups, self.state_dim)
        return 4 * (self.kernel - 1) * self.channels + self.state_control.nbytes(shape)
