"""Linear attention: a dot product of positive features in place of the exponential, so that the past is one matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.errors import InputError, unknown
from lengthwise.mixers.heads import check_heads
from lengthwise.ops.chunks import state_dtype
from lengthwise.ops.linear_attention import CHUNK, linear_attention
from lengthwise.positions.position import Position

Features = Float[Tensor, "batch length heads head_dim"]

FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: functional.elu(x) + 1,
    "relu": functional.relu,
}
"""φ, element by element, by name. None may be negative, so that the denominators aren't."""


@dataclass(frozen=True)
class LinearAttentionState(State):
    """S beside z, and the position of the next token where positions turn queries and keys."""

    memory: Float[Tensor, "batch heads head_dim values_and_1"]
    position: Int[Tensor, " batch"] | None = None


class LinearAttention(SequenceModule):
    """Normalised linear attention, with the past in a matrix and a vector per head.

        q = φ(W_q x)   k = φ(W_k x)   v = W_v x        φ(x) = elu(x) + 1, after the split into heads
        S_i = S_{i-1} + k_i v_iᵀ      z_i = z_{i-1} + k_i
        y_i = W_o · S_iᵀ q_i / (q_i · z_i + eps)

    The scores aren't divided by √head_dim: φ isn't homogeneous, so a scale would not cancel. z is carried as one more
    column of S, whose value is always 1. Where it isn't causal, S and z are the sums over all tokens but padding.

    heads: chosen near a width of 64 where it is None. bias: whether the four linear maps have one. eps: added to the
    denominator. feature_map: φ, "elu" or "relu".
    position: an encoding that rotates. It turns φ(q) and φ(k) in the numerator alone, since the denominator has to stay
    positive (Su et al. 2021, arXiv 2104.09864).
    The linear maps begin as PyTorch's do.

    State: dim (dim / heads + 1) numbers in float32, whatever the length. Katharopoulos et al. 2020, arXiv 2006.16236.
    Raises InputError for heads that don't divide and for positions that add to the logits.
    """

    inherits: ClassVar[tuple[str, ...]] = ("causal",)
    chunk = CHUNK

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        feature_map: str = "elu",
        bias: bool = True,
        causal: bool = True,
        position: Position | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.heads, _ = check_heads(dim, heads)
        self.dim, self.head_dim = dim, dim // self.heads
        if feature_map not in FEATURE_MAPS:
            raise unknown("feature map", feature_map, FEATURE_MAPS)
        if position is not None and (position.has("bias") or position.has("pattern")):
            raise InputError(f"linear attention has no logits to add {type(position).__name__} to; use rope or none")
        self.feature_map, self.causal, self.eps = feature_map, causal, eps
        # The compiler of PyTorch 2.13 mistakes the strides of elu's gradient where keys are transposed for a product.
        self.compiles = causal  # type: ignore[misc]
        self.position = position if position is not None and position.has("rotate") else None
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=bias) for _ in range(4))

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: LinearAttentionState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], LinearAttentionState | None]:
        """Every token's output, and the sums up to the last one, or None where attention isn't causal."""
        dtype, features = state_dtype(x), FEATURE_MAPS[self.feature_map]
        q, k, v = (linear(x).to(dtype) for linear in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (features(q), features(k), v))
        starts = None if layout is None else layout.starts
        memory = None if state is None or not self.causal else state.memory
        turned_q, turned_k, after = q, k, None
        if self.position is not None:
            positions, after = self.places(x, state, layout)
            turned_q, turned_k = self.position.rotate(q, k, positions, positions)
        ones = torch.ones_like(v[..., :1])
        if self.position is None:
            sums, memory = self.total(q, k, torch.cat([v, ones], -1), memory, starts)
        else:
            before, counted = (None, None) if memory is None else (memory[..., :-1], memory[..., -1:])
            top, memory = self.total(turned_q, turned_k, v, before, starts)
            bottom, counted = self.total(q, k, ones, counted, starts)
            sums, memory = torch.cat([top, bottom], -1), torch.cat([memory, counted], -1)
        y = self.o_proj((sums[..., :-1] / (sums[..., -1:] + self.eps)).flatten(2).to(x.dtype))
        return y, LinearAttentionState(memory, after) if self.causal else None

    def total(
        self,
        q: Features,
        k: Features,
        v: Float[Tensor, "batch length heads values"],
        memory: Float[Tensor, "batch heads head_dim values"] | None,
        starts: Bool[Tensor, "batch length"] | None,
    ) -> tuple[Float[Tensor, "batch length heads values"], Float[Tensor, "batch heads head_dim values"]]:
        """Σ_j (q_i · k_j) v_j over the tokens that i sees, and Σ_j k_j v_jᵀ over those of the last document."""
        if self.causal:
            return linear_attention(q, k, v, None, memory, starts)
        if starts is None:
            memory = k.permute(0, 2, 3, 1) @ v.transpose(1, 2)
            return (q.transpose(1, 2) @ memory).transpose(1, 2), memory
        ends = torch.cat([starts[:, 1:], torch.ones_like(starts[:, :1])], 1)[:, : starts.shape[1]]
        ahead, memory = linear_attention(q, k, v, None, None, starts)
        back, _ = linear_attention(q.flip(1), k.flip(1), v.flip(1), None, None, ends.flip(1))
        return ahead + back.flip(1) - (q * k).sum(-1, keepdim=True) * v, memory

    def places(
        self, x: Tensor, state: LinearAttentionState | None, layout: Layout | None
    ) -> tuple[Int[Tensor, "batch length"], Int[Tensor, " batch"]]:
        """The position of every token, and of the one after the last."""
        begin = x.new_zeros(x.shape[0], dtype=torch.long)
        if state is not None and state.position is not None:
            begin = state.position
        if layout is None:
            return begin[:, None] + torch.arange(x.shape[1], device=x.device), begin + x.shape[1]
        return layout.positions, layout.positions[:, -1] + 1 if x.shape[1] else begin

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """The same after any number of tokens; nothing where attention isn't causal."""
        if not self.causal:
            return 0
        itemsize = state_dtype(self.q_proj.weight).itemsize
        place = 0 if self.position is None else torch.long.itemsize
        return self.dim * (self.head_dim + 1) * itemsize + place

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"heads={self.heads}, feature_map={self.feature_map}, causal={self.causal}"
