"""Megalodon's attention: a complex moving average over all that came before, gated attention inside each chunk."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.caches.chunked import ChunkedCache
from lengthwise.channels.timestep_norm import TimestepNorm, TimestepNormState
from lengthwise.contract import Layout, SequenceModule, State, StateTree
from lengthwise.errors import InputError
from lengthwise.mixers.moving_average import ComplexEMA
from lengthwise.positions.rope import RoPE

EPS = 1e-5
"""What is added to the mean squares of the norms."""

Sequence = Float[Tensor, "batch length dim"]


@dataclass(frozen=True)
class MegalodonState(State):
    """The statistics of the norm, what the moving average goes on from, and keys and values of the open chunk."""

    norm: TimestepNormState
    average: StateTree
    chunk: ChunkedCache


class Megalodon(SequenceModule):
    """The attention block of Megalodon, with a norm of its own.

        n = TimestepNorm(x)          m = RMSNorm(CEMA(n))
        z = W_z m + b_z              ẑ = z / √(mean(z²) + eps), for each head
        q = ẑ ⊙ (1 + γ_q) / √d + β_q          k = ẑ ⊙ (1 + γ_k) / √d + β_k          d = Z / heads
        v = SiLU(W_v n + b_v)        r = SiLU(W_r m + b_r)
        o = softmax(q kᵀ) v, causal, among the tokens of a chunk, q and k turned to their places in it
        y = W_m m + b_m + W_o (o ⊙ r)

    chunk: c, counted from the beginning of each document. heads: each of Z / heads of q and k and E / heads of v.
    z_dim: Z, about dim / 4 unless given. value_dim: E, 2 dim unless given. groups: those of the norm. states, phase: of
    the average, see `ComplexEMA`. base: of the rotary positions.
    Weights begin normal with a variance of 1 / (3 inputs), biases, γ, β and the offsets of the norms' weights from 1 at
    zero: q and k begin as the same vector of length 1. γ and β have no weight decay.

    The model is `two_hop(megalodon + swiglu)`, repeated, with `timestep_norm` at the end and LayerNorms before swiglu.
    Costs O(L c (Z + E) + L dim²). State: 2 dim states numbers, the norm's, and (L mod c) (Z + E) of the open chunk.
    Ma et al. 2024, arXiv 2404.08801. Raises InputError for sizes that don't divide, and a chunk below 1.
    """

    growth = "window"
    prenorm = False
    chunk: int

    def __init__(
        self,
        dim: int,
        *,
        chunk: int = 2048,
        heads: int = 1,
        z_dim: int | None = None,
        value_dim: int | None = None,
        states: int = 16,
        groups: int | None = None,
        base: float | int = 10000.0,
        phase: str = "kept",
    ) -> None:
        super().__init__()
        if chunk < 1:
            raise InputError(f"chunk must be at least 1 token, got {chunk}")
        if heads < 1:
            raise InputError(f"heads must be at least 1, got {heads}")
        self.z_dim = 2 * heads * max(1, dim // (8 * heads)) if z_dim is None else z_dim
        self.value_dim = 2 * dim if value_dim is None else value_dim
        for name, width in (("z_dim", self.z_dim), ("value_dim", self.value_dim)):
            if width < 1 or width % heads:
                raise InputError(f"heads must divide {name}: got heads={heads} and {name}={width}")
        if self.z_dim // heads % 2:
            raise InputError(f"rotary positions turn pairs: z_dim / heads must be even, got {self.z_dim} / {heads}")
        self.heads, self.chunk = heads, chunk
        self.norm = TimestepNorm(dim, groups=groups)
        self.average = ComplexEMA(dim, states=states, phase=phase)
        self.average_weight = vector(dim)
        self.v_proj = nn.Linear(dim, self.value_dim)
        self.m_proj = nn.Linear(dim, self.z_dim + self.value_dim + dim)
        self.o_proj = nn.Linear(self.value_dim, dim, bias=False)
        self.gain, self.shift = vector(2, self.z_dim), vector(2, self.z_dim)
        self.rope = RoPE(base=base)
        for layer in (self.v_proj, self.m_proj, self.o_proj):
            nn.init.kaiming_normal_(layer.weight, a=math.sqrt(5))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(
        self, x: Sequence, state: MegalodonState | None = None, layout: Layout | None = None
    ) -> tuple[Sequence, MegalodonState]:
        """What the block adds to every token, and the state after the last one."""
        n, norm = self.norm(x, None if state is None else state.norm, layout)
        m, average = self.averaged(n, None if state is None else state.average, layout)
        m = F.rms_norm(m, m.shape[-1:], 1 + self.average_weight.to(m.dtype), eps=EPS)
        z, r, added = self.m_proj(m).split((self.z_dim, self.value_dim, x.shape[-1]), -1)
        v = F.silu(self.v_proj(n)).unflatten(-1, (self.heads, -1))
        q, k = self.queries_and_keys(z)
        cache = ChunkedCache.empty(self.chunk, k, v) if state is None else state.chunk
        places = cache.places(x.shape[1], layout)
        q, k = self.rope.rotate(q, k, places, places)
        o, cache = cache.attend(q, k, v, layout, scale=1.0)
        y = added + self.o_proj(o.flatten(2) * F.silu(r))
        return y, MegalodonState(norm, average, cache)

    def averaged(self, n: Sequence, state: StateTree, layout: Layout | None) -> tuple[Sequence, StateTree]:
        """CEMA(n), and what it goes on from."""
        return self.average(n, state, layout)

    def queries_and_keys(
        self, z: Float[Tensor, "batch length shared"]
    ) -> tuple[Float[Tensor, "batch length heads head_dim"], Float[Tensor, "batch length heads head_dim"]]:
        """q and k before they are turned."""
        z = z.unflatten(-1, (self.heads, -1))
        z = F.rms_norm(z, z.shape[-1:], eps=EPS)
        gain, shift = (t.unflatten(-1, (self.heads, -1)).to(z.dtype) for t in (self.gain, self.shift))
        gain = (1 + gain) / math.sqrt(z.shape[-1])
        return torch.addcmul(shift[0], z, gain[0]), torch.addcmul(shift[1], z, gain[1])

    def state_nbytes(self, length: int) -> int:
        """Those of the norm and of the average, and keys and values of the open chunk."""
        kept = length % self.chunk * (self.z_dim + self.value_dim) * self.v_proj.weight.element_size()
        return self.norm.state_nbytes(length) + self.average.state_nbytes(length) + kept

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"chunk={self.chunk}, heads={self.heads}, z_dim={self.z_dim}, value_dim={self.value_dim}"


def vector(*shape: int) -> nn.Parameter:
    """Zeros without weight decay."""
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.no_weight_decay = True  # type: ignore[attr-defined]
    return parameter
