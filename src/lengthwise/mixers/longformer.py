"""Attention in a window with global tokens, which have projections of their own."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.contract import Layout, StateTree
from lengthwise.errors import InputError
from lengthwise.mixers.attention import Attention
from lengthwise.ops.attention import attention
from lengthwise.ops.dense_attention import dense
from lengthwise.ops.document_rows import as_rows, put_back
from lengthwise.ops.patterns import dilated, global_tokens, keys_at
from lengthwise.positions.position import Position


class Longformer(Attention):
    """Softmax attention of every token to those near it and to the global tokens, which see everything.

        i ∉ G:   o_i = Σ_j p_ij v_j    over j ∈ G, and |i − j| ≤ w s with i ≡ j (mod s)      p from q_i · k_j / √d
        i ∈ G:   o_i = Σ_j p'_ij v'_j  over all j of the document                             p' from q'_i · k'_j / √d

    with q, k, v = W x + b, and a second set of maps for q', k', v'. A global token that lies in a window counts once.
    Costs O(L · (w + |G|)). Beltagy et al. 2020, arXiv 2004.05150.

    G are the tokens that `layout.marked` marks, and the `first` ones of each document; they may differ from row to row.
    Causal, it is attention in the window w s before the token, and there are no global tokens: they would see ahead.

    window: w, the tokens to each side; `window=256` is what configurations elsewhere call a window of 512. dilation: s.
    heads, kv_heads, head_dim, position, bias, depth: as in `attention`, initial values too; a position may rotate. The
    maps of global tokens begin as copies of the others.

    State: none; causal, `WindowedCache`. Raises InputError for heads that don't divide, a window of less than one
    token, and global tokens in a causal model.
    """

    sharpens: ClassVar[bool] = False

    def __init__(
        self,
        dim: int,
        *,
        window: int = 256,
        dilation: int = 1,
        first: int = 0,
        heads: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        position: Position | None = None,
        causal: bool = False,
        bias: bool = True,
        depth: int = 1,
    ) -> None:
        for name, value, least in (("window", window, 1), ("dilation", dilation, 1), ("first", first, 0)):
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if causal and first:
            raise InputError(
                f"global tokens see ahead, which a causal model can't, got first={first};"
                " attention(pattern=window(512) | first(4)) keeps first tokens in sight"
            )
        if position is not None and not causal and (position.has("bias") or position.has("pattern")):
            raise InputError(f"{type(position).__name__} changes the logits, which longformer leaves alone; use rope")
        near = dilated(dilation, window + 1) if causal else dilated(dilation, window, window)
        super().__init__(
            dim,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            pattern=near if causal else near | global_tokens(*range(first)),
            position=position,
            causal=causal,
            bias=bias,
            depth=depth,
        )
        self.near, self.globals = near, first
        if not causal:
            self.global_q_proj, self.global_k_proj, self.global_v_proj = (
                copy.deepcopy(projection) for projection in (self.q_proj, self.k_proj, self.v_proj)
            )

    def copy_projections(self) -> None:
        """Let the maps of global tokens be copies of the others, as where they begin, after these have been trained or
        loaded alone."""
        for name in () if self.causal else ("q_proj", "k_proj", "v_proj"):
            getattr(self, f"global_{name}").load_state_dict(getattr(self, name).state_dict())

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """Every token's output; 0 before the output projection for padding."""
        if self.causal:
            if layout is not None and layout.marked is not None and layout.marked.any():
                raise InputError("global tokens see ahead, which a causal model can't, but the layout marks some")
            return super().forward(x, state, layout)
        tensors = list(self._turned(self.project(x), layout))
        groups, order = self._groups(x, layout)
        if any(marks for marks, _ in groups):
            tensors += self._turned((self._global(x, "q"), self._global(x, "k"), self._global(x, "v")), layout)
        if order is None:
            o = self._attend(groups[0][0], *tensors)
        else:
            parts = zip(*(as_rows(t, order, [size for _, size in groups]) for t in tensors), strict=True)
            outputs = [self._attend(marks, *given) for (marks, _), given in zip(groups, parts, strict=True)]
            o = put_back([tensors[0][:0], *outputs], order, x.shape[:2])
        return self.o_proj(o.flatten(2)), None

    def _attend(self, marks: tuple[int, ...], q: Tensor, k: Tensor, v: Tensor, *wide: Tensor) -> Tensor:
        """Attention of documents of equal length with the same global tokens, each a row. wide: q', k' and v', where
        some have any."""
        o = attention(q, k, v, pattern=self.near | keys_at(*marks) if marks else self.near)
        if not marks:
            return o
        at = torch.tensor(marks, device=q.device)
        seeing, keys, values = wide
        return o.index_copy(1, at, dense(seeing[:, at], keys, values).to(o.dtype))

    def _global(self, x: Tensor, name: str) -> Tensor:
        """The second q, k or v."""
        projection = getattr(self, f"global_{name}_proj")
        return projection(x).unflatten(-1, (self.heads if name == "q" else self.kv_heads, self.head_dim))

    def _turned(self, projected: tuple[Tensor, Tensor, Tensor], layout: Layout | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys turned to their positions, where these rotate, and values as they are."""
        q, k, v = projected
        if self.position is None or not self.position.has("rotate"):
            return q, k, v
        places = torch.arange(q.shape[1], device=q.device)[None] if layout is None else layout.positions
        return *self.position.rotate(q, k, places, places), v

    def _groups(
        self, x: Tensor, layout: Layout | None
    ) -> tuple[list[tuple[tuple[int, ...], tuple[int, int]]], Int[Tensor, " tokens"] | None]:
        """The documents that have equal lengths and the same global tokens: those tokens, and how many documents of
        which length they are; and the tokens of x in that order, None where each row is a document."""
        batch, width = x.shape[:2]
        if layout is None:
            return [(tuple(range(min(self.globals, width))), (batch, width))], None
        found: dict[tuple[tuple[int, ...], int], list[int]] = defaultdict(list)
        marked = (torch.zeros_like(layout.padding) if layout.marked is None else layout.marked).tolist()
        for row, begin, length in torch.stack(layout.runs(), 1).tolist():
            marks = tuple(at for at in range(length) if at < self.globals or marked[row][begin + at])
            found[marks, length].append(row * width + begin)
        groups = [(marks, (len(begins), length)) for (marks, length), begins in found.items()]
        order = [
            (torch.tensor(begins)[:, None] + torch.arange(length)).flatten() for (_, length), begins in found.items()
        ]
        return groups, torch.cat([torch.zeros(0, dtype=torch.long), *order]).to(x.device)
