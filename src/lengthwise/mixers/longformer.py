"""Attention in a window with global tokens, which have projections of their own."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.contract import Layout, StateTree
from lengthwise.errors import InputError
from lengthwise.mixers.attention import Attention
from lengthwise.ops.attention import attention
from lengthwise.ops.dense_attention import dense
from lengthwise.ops.pattern import Pattern
from lengthwise.ops.patterns import dilated, global_tokens, keys_at
from lengthwise.positions.position import Position

Place = tuple[int, int]
"""The row of a document, and the index at which it begins."""


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
        q, k, v = self._turned(self.project(x), layout)
        groups = list(self._groups(x, layout))
        wide = None
        if any(marks for marks, _, _ in groups):
            wide = self._turned((self._global(x, "q"), self._global(x, "k"), self._global(x, "v")), layout)
        o = torch.zeros_like(q) if layout is not None else None
        for marks, length, places in groups:
            index = None if o is None else _index(places, length, x.device)
            part = self._attend(marks, *(_taken(t, index) for t in (q, k, v)))
            if marks and wide is not None:
                at = torch.tensor(marks, device=x.device)
                seeing, keys, values = (_taken(t, index) for t in wide)
                part = part.index_copy(1, at, dense(seeing[:, at], keys, values).to(part.dtype))
            o = part if o is None or index is None else o.index_put(index, part.to(o.dtype))
        assert o is not None
        return self.o_proj(o.flatten(2)), None

    def _attend(self, marks: tuple[int, ...], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of documents of equal length with the same global tokens, each a row."""
        pattern: Pattern = self.near | keys_at(*marks) if marks else self.near
        return attention(q, k, v, pattern=pattern)

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

    def _groups(self, x: Tensor, layout: Layout | None) -> Iterator[tuple[tuple[int, ...], int, list[Place]]]:
        """The documents that have equal lengths and the same global tokens: those tokens, the length, and where the
        documents are."""
        first = tuple(range(min(self.globals, x.shape[1])))
        if layout is None:
            yield first, x.shape[1], []
            return
        found: dict[tuple[tuple[int, ...], int], list[Place]] = defaultdict(list)
        starts, padding = layout.starts.tolist(), layout.padding.tolist()
        marked = (torch.zeros_like(layout.padding) if layout.marked is None else layout.marked).tolist()
        for row, (begins, absent) in enumerate(zip(starts, padding, strict=True)):
            cuts = [at for at, yes in enumerate(begins) if yes or at == 0] + [len(begins)]
            for begin, end in itertools.pairwise(cuts):
                if not absent[begin]:
                    marks = {at for at in range(end - begin) if marked[row][begin + at]} | set(first)
                    inside = tuple(sorted(mark for mark in marks if mark < end - begin))
                    found[inside, end - begin].append((row, begin))
        for (own, length), places in found.items():
            yield own, length, places


def _index(places: list[Place], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of the tokens of documents."""
    row, begin = torch.tensor(places, device=device).unbind(1)
    return row[:, None], begin[:, None] + torch.arange(length, device=device)


def _taken(x: Tensor, index: tuple[Tensor, Tensor] | None) -> Tensor:
    """Documents as rows."""
    return x if index is None else x[index]
