"""Mega's gated attention in chunks, behind a memory of what came before: a moving average, or convolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.caches.chunked import ChunkedCache
from lengthwise.contract import Layout, SequenceModule, State, StateTree
from lengthwise.errors import InputError
from lengthwise.mixers.moving_average import DampedEMA
from lengthwise.mixers.tcn import TCN
from lengthwise.ops.initial import begin_normal

Sequence = Float[Tensor, "batch length dim"]


@dataclass(frozen=True)
class MegaState(State):
    """What the memory goes on from, and keys and values of the open chunk."""

    memory: StateTree
    chunk: ChunkedCache


class MegaBlock(SequenceModule):
    """The block that `Mega` and `TCNCA` share, with a norm of its own.

        n = LayerNorm(x)          m = SiLU(memory(n))          v = SiLU(W_v n + b_v)
        [u, z, r, g] = W_m m + b_m          u = σ(u)   z = SiLU(z)   r = SiLU(r)
        q = γ_0 ⊙ z + β_0          k = γ_1 ⊙ z + β_1
        o_i = softmax(q_i · k_j / √Z + b_{i−j}) v_j, among the tokens of a chunk
        h = SiLU(g + W_h (r ⊙ o) + b_h)          output = u ⊙ (h − x)

    On a residual branch that is x + u ⊙ (h − x): the gate u chooses between the token and what was made of it.

    memory: the module that reads n. chunk: c, counted from the beginning of each document. z_dim: Z, dim / 4 unless
    given. value_dim: E, 2 dim unless given. causal: sees the past alone, otherwise its whole chunk.
    Weights, γ and b_{i−j} begin as N(0, 0.02), biases and β as 0; γ, β and b_{i−j} have no weight decay.
    """

    inherits: ClassVar[tuple[str, ...]] = ("causal",)
    growth = "window"
    prenorm = False
    chunk: int

    def __init__(
        self,
        dim: int,
        memory: SequenceModule,
        *,
        chunk: int,
        z_dim: int | None,
        value_dim: int | None,
        causal: bool,
    ) -> None:
        super().__init__()
        self.z_dim = max(1, dim // 4) if z_dim is None else z_dim
        self.value_dim = 2 * dim if value_dim is None else value_dim
        for name, size in {"chunk": chunk, "z_dim": self.z_dim, "value_dim": self.value_dim}.items():
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        self.causal, self.chunk = causal, chunk
        self.receptive_field = None
        if causal and memory.receptive_field is not None:
            self.receptive_field = memory.receptive_field + chunk - 1
        self.norm = nn.LayerNorm(dim)
        self.memory = memory
        self.v_proj = nn.Linear(dim, self.value_dim)
        self.m_proj = nn.Linear(dim, 2 * dim + self.z_dim + self.value_dim)
        self.h_proj = nn.Linear(self.value_dim, dim)
        self.gamma = nn.Parameter(0.02 * torch.randn(2, self.z_dim))
        self.beta = nn.Parameter(torch.zeros(2, self.z_dim))
        self.relative = nn.Parameter(0.02 * torch.randn(chunk if causal else 2 * chunk - 1))
        for undecayed in (self.gamma, self.beta, self.relative):
            undecayed.no_weight_decay = True  # type: ignore[attr-defined]
        begin_normal(self.v_proj, self.m_proj, self.h_proj)

    def forward(
        self, x: Sequence, state: MegaState | None = None, layout: Layout | None = None
    ) -> tuple[Sequence, MegaState | None]:
        """What the block adds to every token, and the state after the last one, None where it isn't causal."""
        n = self.norm(x)
        m, memory = self.memory(n, None if state is None else state.memory, layout)
        u, z, r, g = self.m_proj(F.silu(m)).split((x.shape[-1], self.z_dim, self.value_dim, x.shape[-1]), -1)
        z, v = F.silu(z), F.silu(self.v_proj(n))[:, :, None]
        gamma, beta = self.gamma.to(z.dtype), self.beta.to(z.dtype)
        q, k = (torch.addcmul(beta[i], z, gamma[i])[:, :, None] for i in (0, 1))
        cache = ChunkedCache.empty(self.chunk, k, v) if state is None else state.chunk
        scale = 1 / math.sqrt(self.z_dim)
        bias = self.bias(cache.places(x.shape[1], layout))
        o, cache = cache.attend(q, k, v, layout, scale=scale, bias=bias, causal=self.causal)
        h = F.silu(g + self.h_proj(F.silu(r) * o.flatten(2)))
        return torch.sigmoid(u) * (h - x), MegaState(memory, cache) if self.causal else None

    def bias(self, queries: Int[Tensor, "rows count"]) -> Float[Tensor, "1 chunk chunk"]:
        """b_{i−j} for the places i and j of a chunk, those of `queries` at least; what isn't seen has any."""
        place = torch.arange(self.chunk, device=self.relative.device)
        # A token decoded alone reads one row, which then stands for all of them: c² numbers would cost more than it.
        alone = self.causal and queries.numel() == 1
        apart = (queries if alone else place[:, None]) - place
        b = self.relative[apart.clamp_min(0) if self.causal else apart + self.chunk - 1]
        return b.expand(1, self.chunk, -1)

    def state_nbytes(self, length: int) -> int:
        """Those of the memory, and keys and values of the open chunk."""
        if not self.causal:
            return 0
        kept = length % self.chunk * (self.z_dim + self.value_dim) * self.v_proj.weight.element_size()
        return self.memory.state_nbytes(length) + kept  # type: ignore[operator]

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"chunk={self.chunk}, z_dim={self.z_dim}, value_dim={self.value_dim}"


class Mega(MegaBlock):
    """Mega in chunks: a damped moving average carries what came before into gated attention that sees its chunk alone.

    See `MegaBlock` for the equations, with memory(n) = EMA(n) + ω n of `DampedEMA`. states: averages of each channel.

    The layer is `mega + mlp`. Costs O(L (c (Z + E) + dim states) + L dim²). State: dim states numbers, and
    (L mod c) (Z + E) of the open chunk. Ma et al. 2022, arXiv 2209.10655. Raises InputError for sizes below 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        states: int = 16,
        chunk: int = 128,
        z_dim: int | None = None,
        value_dim: int | None = None,
        causal: bool = True,
    ) -> None:
        memory = DampedEMA(dim, states=states, causal=causal)
        super().__init__(dim, memory, chunk=chunk, z_dim=z_dim, value_dim=value_dim, causal=causal)


class TCNCA(MegaBlock):
    """Mega in chunks whose memory is a temporal convolution network: finite, and linear in time.

    See `MegaBlock` for the equations, with memory(n) = TCN(n), the residual layers of dilated convolutions of `TCN`,
    whose arguments kernel, dilation_factor, levels and depthwise are; with both at their default it sees 17³ tokens.

    The layer is `tcnca + mlp`. Costs O(L (c (Z + E) + dim kernel levels) + L dim²). State: the last inputs of every
    convolution, and (L mod c) (Z + E) numbers of the open chunk.
    Terzić et al. 2023, arXiv 2312.05605, which leaves kernel, dilations and activation open: they are this library's
    choice. Raises InputError as `TCN` does, and for sizes below 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel: int = 17,
        dilation_factor: int | None = None,
        levels: int = 3,
        depthwise: bool = True,
        chunk: int = 128,
        z_dim: int | None = None,
        value_dim: int | None = None,
        causal: bool = True,
    ) -> None:
        memory = TCN(
            dim, kernel=kernel, dilation_factor=dilation_factor, levels=levels, depthwise=depthwise, causal=causal
        )
        super().__init__(dim, memory, chunk=chunk, z_dim=z_dim, value_dim=value_dim, causal=causal)
