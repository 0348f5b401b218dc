"""DeltaNet: a matrix memory that replaces what it holds for a key instead of adding to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.errors import InputError
from lengthwise.mixers.heads import check_heads
from lengthwise.ops.chunks import state_dtype
from lengthwise.ops.delta_rule import CHUNK, delta_rule
from lengthwise.ops.initial import begin_normal
from lengthwise.ops.short_convolution import short_convolution

Heads = Float[Tensor, "batch length heads head_dim"]


@dataclass(frozen=True)
class DeltaNetState(State):
    """S, and the last inputs of the convolution over queries, keys and values."""

    memory: Float[Tensor, "batch heads head_dim values"]
    tail: Float[Tensor, "batch history channels"]


class DeltaNet(SequenceModule):
    """Linear attention with the delta rule.

        [q, k, v] = SiLU(conv([W_q, W_k, W_v] x))       depthwise, causal, `convolution` taps, no bias
        q ← q / |q| / √head_dim     k ← k / |k|         per head, 1e-6 under the root
        β_t = largest_beta · σ(W_β x_t)                 one per head
        S_t = S_{t-1} + β_t k_t (v_t − S_{t-1}ᵀ k_t)ᵀ   o_t = S_tᵀ q_t
        y = W_o (RMSNorm(o) ⊙ SiLU(W_g x))              the norm per head with eps 1e-5, its weights shared by all heads

    One step of gradient descent on ½ |S_{t-1}ᵀ k_t − v_t|² at rate β_t: with β_t = 1 the memory returns v_t for k_t
    afterwards, whatever it held.

    heads: chosen near a width of 64 where it is None. convolution: taps. gate: whether the factor SiLU(W_g x) is there.
    largest_beta: 1; up to 2 lets the factors I − β k kᵀ have negative eigenvalues (Grazzi et al. 2024, arXiv
    2411.12537). The linear maps have no bias and begin as N(0, 0.02), the convolution as PyTorch's.

    State: dim²/heads + 3 dim (convolution − 1) numbers in float32, whatever the length.
    Yang et al. 2024, arXiv 2406.06484. Raises InputError for heads that don't divide, no taps, rates outside (0, 2].
    """

    chunk = CHUNK

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        convolution: int = 4,
        gate: bool = False,
        largest_beta: float = 1.0,
    ) -> None:
        super().__init__()
        self.heads, _ = check_heads(dim, heads)
        if convolution < 1:
            raise InputError(f"convolution must have at least 1 tap, got {convolution}")
        if not 0 < largest_beta <= 2:
            raise InputError(f"largest_beta must be above 0 and at most 2, or the memory explodes; got {largest_beta}")
        self.dim, self.head_dim, self.convolution, self.largest_beta = dim, dim // self.heads, convolution, largest_beta
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.b_proj = nn.Linear(dim, self.heads, bias=False)
        self.g_proj = nn.Linear(dim, dim, bias=False) if gate else None
        self.conv1d = nn.Conv1d(3 * dim, 3 * dim, convolution, groups=3 * dim, bias=False)
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5)
        begin_normal(*(module for module in self.modules() if isinstance(module, nn.Linear)))

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: DeltaNetState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], DeltaNetState]:
        """Every token's output, and the memory after the last one."""
        dtype = state_dtype(x)
        starts = None if layout is None else layout.starts
        memory, tail = (None, None) if state is None else (state.memory, state.tail)
        qkv = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)
        qkv, tail = short_convolution(qkv, self.conv1d.weight[:, 0], None, tail, starts, "silu")
        q, k, v = (part.unflatten(-1, (self.heads, -1)).to(dtype) for part in qkv.chunk(3, -1))
        rates = self.largest_beta * self.b_proj(x).to(dtype).sigmoid()
        o, memory = self.recall(q, k, v, rates, memory, starts)
        o = functional.rms_norm(o, (self.head_dim,), self.norm.weight.to(dtype), self.norm.eps).flatten(2)
        if self.g_proj is not None:
            o = o * functional.silu(self.g_proj(x))
        return self.o_proj(o.to(x.dtype)), DeltaNetState(memory, tail)

    def recall(
        self,
        q: Heads,
        k: Heads,
        v: Heads,
        rates: Float[Tensor, "batch length heads"],
        memory: Float[Tensor, "batch heads head_dim values"] | None,
        starts: Bool[Tensor, "batch length"] | None,
    ) -> tuple[Heads, Float[Tensor, "batch heads head_dim values"]]:
        """What the memory returns for each query once the token is written, and the memory after the last one."""
        return delta_rule(unit(q) * self.head_dim**-0.5, unit(k), v, rates, memory, starts)

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """The same after any number of tokens."""
        numbers = self.dim * self.head_dim + 3 * self.dim * (self.convolution - 1)
        return numbers * state_dtype(self.q_proj.weight).itemsize

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"heads={self.heads}, convolution={self.convolution}, largest_beta={self.largest_beta}"


def unit(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x / |x| along the last dimension, with 1e-6 under the root."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
