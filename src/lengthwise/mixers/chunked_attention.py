"""Softmax attention inside chunks of the sequence, which don't see each other."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.caches.chunked import ChunkedCache
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.attention import Attention
from lengthwise.positions.position import Position


class ChunkedAttention(Attention):
    """Softmax attention of each token to those of its chunk alone: as `attention`, where i sees j if ⌊i / c⌋ = ⌊j / c⌋.

    Chunks of c tokens are counted from the beginning of each document, and positions from the beginning of each chunk.
    It carries nothing from one chunk to the next, so that something else must: a recurrence or a convolution in front
    of it. Costs O(L · c).

    chunk: c. heads, kv_heads, head_dim, position, causal, bias, depth: as in `attention`, initial values too; a
    position may rotate and add a bias.

    State: `ChunkedCache`, 2 (L mod c) kv_heads head_dim numbers.
    Qiu et al. 2019, arXiv 1911.02972, with one block a query. Raises InputError for a chunk below 1, heads that don't
    divide, and positions that narrow who is seen.
    """

    sharpens: ClassVar[bool] = False

    chunk: int

    def __init__(
        self,
        dim: int,
        *,
        chunk: int = 64,
        heads: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        position: Position | None = None,
        causal: bool = True,
        bias: bool = False,
        depth: int = 1,
    ) -> None:
        if chunk < 1:
            raise InputError(f"chunk must be at least 1 token, got {chunk}")
        if position is not None and position.has("pattern"):
            raise InputError(f"{type(position).__name__} narrows who is seen, which chunks already do; use rope or t5")
        if position is not None and position.has("steps"):
            raise InputError(f"{type(position).__name__} reads sums of all tokens, which chunks don't carry; use alibi")
        super().__init__(
            dim,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            position=position,
            causal=causal,
            bias=bias,
            depth=depth,
        )
        self.chunk = chunk
        self.growth = "window"
        self.receptive_field = chunk

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "batch length dim"],
        state: ChunkedCache | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], ChunkedCache | None]:
        """Every token's output, and the open chunk after them, which is None where attention isn't causal."""
        q, k, v = self.project(x)
        cache = ChunkedCache.empty(self.chunk, k, v) if state is None or not self.causal else state
        bias = None
        if self.position is not None and self.position.has("rotate"):
            places = cache.places(x.shape[1], layout)
            q, k = self.position.rotate(q, k, places, places)
        if self.position is not None and self.position.has("bias"):
            places = torch.arange(self.chunk, device=x.device)
            added = self.position.bias(places, places, self.heads)
            bias = None if added is None else added.written()[0]
        o, after = cache.attend(q, k, v, layout, bias=bias, causal=self.causal)
        return self.o_proj(o.flatten(2)), after if self.causal else None

    def state_nbytes(self, length: int) -> int:
        """Keys and values of the open chunk."""
        kept = length % self.chunk if self.causal else 0
        return 2 * kept * self.kv_heads * self.head_dim * self.k_proj.weight.element_size()

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}, chunk={self.chunk}"
