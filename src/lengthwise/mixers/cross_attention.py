"""Softmax attention of a decoder to the source that it answers."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lengthwise.caches.source import SourceCache
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.attention import Attention
from lengthwise.ops.patterns import full


class CrossAttention(Attention):
    """Softmax attention of each decoded token x_i to every token s_j of an encoded source.

        q_i = W_q x_i   k_j = W_k s_j   v_j = W_v s_j          o_i = Σ_j softmax_j(q_i · k_j / √d) v_j   y = W_o o

    A token reads the source alone, and none of the decoded tokens; with several documents in a row, the source of its
    own document. Where that source has no token o is 0, and y the bias of W_o. Costs O(S) for a decoded token.

    heads, kv_heads, head_dim, scale, bias, depth: as in `attention`, initial values too.

    `begin(source, layout)` gives the state to start from. State: `SourceCache`, 2 S kv_heads head_dim numbers that no
    decoded token adds to, and S + 1 numbers more where the source has padding or several documents.
    Vaswani et al. 2017, arXiv 1706.03762. Raises InputError for heads that don't divide, and without a source.
    """

    inherits: ClassVar[tuple[str, ...]] = ("depth",)

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        scale: float | None = None,
        bias: bool = False,
        depth: int = 1,
    ) -> None:
        super().__init__(dim, heads=heads, kv_heads=kv_heads, head_dim=head_dim, scale=scale, bias=bias, depth=depth)
        self.pattern = full()
        self.growth = "constant"
        self.receptive_field = 1

    def begin(self, source: Float[Tensor, "batch source dim"], layout: Layout | None = None) -> SourceCache:
        """Keys and values of the source, made once."""
        k, v = (
            projection(source).unflatten(-1, (self.kv_heads, self.head_dim))
            for projection in (self.k_proj, self.v_proj)
        )
        return SourceCache.of(k, v, layout)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "batch length dim"],
        state: SourceCache | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], SourceCache]:
        """What every token reads of the source, and the state, in which the source is as it was."""
        if state is None:
            raise InputError("cross_attention has no source to read; start from the state that encode(source) gives")
        q = self.q_proj(x).unflatten(-1, (self.heads, self.head_dim))
        documents, after = state.read(x.shape[1], layout)
        q, factor = self.sharpened(q, q.new_zeros(1, x.shape[1]))
        o = self.attend(
            q,
            state.keys.to(q.dtype),
            state.values.to(q.dtype),
            pattern=self.pattern,
            scale=(self.head_dim**-0.5 if self.scale is None else self.scale) * factor,
            query_documents=documents,
            key_documents=None if documents is None else state.documents,
        )
        return self.o_proj(o.flatten(2)), after

    def state_nbytes(self, length: int, source: int = 0, documents: bool = False) -> int:  # noqa: ARG002
        """Keys and values of a source of `source` tokens, and document numbers where it has padding or several."""
        numbers = 8 * (source + 1) if documents else 0
        return 2 * source * self.kv_heads * self.head_dim * self.k_proj.weight.element_size() + numbers
