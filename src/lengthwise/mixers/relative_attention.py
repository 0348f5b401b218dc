"""Attention with relative embeddings that the query reads by content."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lengthwise.errors import InputError
from lengthwise.mixers.attention import Attention
from lengthwise.ops.attention import attention
from lengthwise.ops.patterns import blocks
from lengthwise.ops.relative_content import RelativeContent
from lengthwise.positions.position import Position


class RelativeAttention(Attention):
    """Attention in which every query also reads an embedding of how far away each key is.

        p_ij = softmax over the j that i sees, of (q_i · k_j + S_ij) / √d       S_ij = q_i · E[M − 1 − (i − j)]

    E: [heads, M, d], whose last row is distance 0; keys M or more steps away have S = 0. With causal=False E has 2M − 1
    rows, M − 1 of them for keys that come later. S is never built from an embedding for every pair: see
    `RelativeContent`. Memory beside the logits is O(L d).

    length: M. block: N, for the local form, in which a token sees its own block of N tokens up to itself and all of the
    block before it; None for the global form. heads, kv_heads, head_dim, position, causal, bias, depth: as in
    `attention`, whose initial values it has; E begins as N(0, 1/√d), which is the standard deviation.

    State: that of `attention` with the same pattern; E is no part of it. Raises InputError for a length or block below
    1 and for positions that add to the logits themselves. Huang et al. 2018, arXiv 1809.04281.
    """

    def __init__(
        self,
        dim: int,
        *,
        length: int = 512,
        block: int | None = None,
        heads: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        position: Position | None = None,
        causal: bool = True,
        bias: bool = False,
        depth: int = 1,
    ) -> None:
        if length < 1:
            raise InputError(f"length must be at least 1 token, got {length}")
        if block is not None and block < 1:
            raise InputError(f"block must be at least 1 token, got {block}")
        if position is not None and position.has("bias"):
            raise InputError(f"{type(position).__name__} adds to the logits, which relative_attention does itself")
        super().__init__(
            dim,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            pattern=None if block is None else blocks(block, previous=1),
            position=position,
            causal=causal,
            bias=bias,
            depth=depth,
        )
        self.length = length
        rows = length if causal else 2 * length - 1
        self.relative = nn.Parameter(torch.randn(self.heads, rows, self.head_dim) * self.head_dim**-0.5)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        """What queries read of keys and values, with S among the logits."""
        table, places = self.relative.to(q.dtype), how["positions"]
        added = RelativeContent(q.transpose(1, 2), table, k.shape[1], self.length - 1, how["scale"], places)
        return attention(q, k, v, **{**how, "bias": added})

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"{super().extra_repr()}, length={self.length}"
