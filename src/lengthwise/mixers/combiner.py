"""Combiner: attention to some tokens one by one, and to all others by summaries of regions, in one softmax."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.caches.combiner import FixedSummaries
from lengthwise.caches.combiner_axial import AxialSummaries, SummaryKey, own_key, weighted_key
from lengthwise.caches.combiner_logsparse import LogsparseSummaries
from lengthwise.caches.combiner_mixture import MixtureSummaries
from lengthwise.caches.documents import by_document
from lengthwise.contract import Layout
from lengthwise.errors import InputError, unknown
from lengthwise.mixers.attention import Attention
from lengthwise.ops.combiner import BOTH_WAYS, FORMS
from lengthwise.ops.combiner_both_ways import fixed_both_ways, mixture_both_ways
from lengthwise.ops.initial import begin_normal
from lengthwise.positions.position import Position

SEGMENT = 128
"""Tokens of a segment unless given."""

SUMMARY_KEYS: dict[str, SummaryKey | None] = {"projected": None, "own": own_key, "weighted": weighted_key}
"""Keys of summaries that are seen from a place; None is one with parameters."""

Summaries = FixedSummaries | LogsparseSummaries | AxialSummaries | MixtureSummaries


class Combiner(Attention):
    """Softmax attention to tokens near by and to summaries of regions, which together cover all that a token may see.

        q, k, v = W_q x, W_k x, W_v x
        o_i = softmax over tokens j ∈ O_i and regions r, of q_i · k_j / √d and q_i · k̄_r / √d, of v_j and v̄_r
        k̄_r = max_j k_j      v̄_r = Σ_j softmax(max_m q_m · k_j / √d) v_j, over the tokens of r      y = W_o o

    form: which tokens and regions, see `lengthwise.ops.combiner`. "fixed": its own segment, and a summary of every
    other one. "logsparse": itself, and summaries of blocks of powers of two before it.
    "axial": its own segment, and of every earlier one a summary from the point of view of its place there. "mixture":
    its own row and column, where segments are rows, and summaries of the parts of all other rows and columns. fixed and
    mixture read both ways, too.
    segment: w, 128 by default, counted from the beginning of each document; logsparse has none.
    summary_key: of axial, for the summary of segment u from place l: "projected", W_2 LayerNorm(W_1 v̄ + x_(u,l));
    "own", k_(u,l); "weighted", the keys averaged as the values are.
    heads, head_dim, position, causal, bias, depth: as in `attention`, initial values too, W_1 and W_2 as W_q. A
    position may rotate: keys are turned first and then pooled.

    Costs O(L (w + L / w)), least at w = √L, and logsparse O(L log L). State, for each head: `FixedSummaries`,
    2 (L mod w + ⌊L / w⌋) d numbers; the others O(L d), as the classes in `lengthwise.caches` say.
    Ren et al. 2021, arXiv 2107.05768. Raises InputError for unknown names, a segment below 1 or where there is none,
    forms that are causal and shouldn't be, and positions that change the logits.
    """

    sharpens: ClassVar[bool] = False

    def __init__(
        self,
        dim: int,
        *,
        form: str = "fixed",
        segment: int | None = None,
        summary_key: str = "projected",
        heads: int | None = None,
        head_dim: int | None = None,
        position: Position | None = None,
        causal: bool = True,
        bias: bool = False,
        depth: int = 1,
    ) -> None:
        check(form, segment, summary_key, position, causal)
        super().__init__(dim, heads=heads, head_dim=head_dim, position=position, causal=causal, bias=bias, depth=depth)
        self.dim, self.form, self.summary_key = dim, form, summary_key
        self.segment = SEGMENT if segment is None else segment
        self.chunk = None if form == "logsparse" else self.segment
        if form == "axial" and summary_key == "projected":
            inner = self.heads * self.head_dim
            self.summary_in, self.summary_norm = nn.Linear(inner, dim, bias=bias), nn.LayerNorm(dim)
            self.summary_out = nn.Linear(dim, inner, bias=bias)
            begin_normal(self.summary_in, self.summary_out)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "batch length dim"],
        state: Summaries | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Summaries | None]:
        """Every token's output, and what is kept after them, which is None where attention isn't causal."""
        q, k, v = self.project(x)
        inputs = x if self.form == "axial" and self.summary_key == "projected" else x[..., :0]
        kept = self.nothing(k, inputs) if state is None or not self.causal else state
        if self.position is not None and self.position.has("rotate"):
            places = kept.places(x.shape[1], layout)
            q, k = self.position.rotate(q, k, places, places)
        o, after = by_document(self.step, kept, (q, k, v, inputs), layout)
        return self.o_proj(o.flatten(2)), after if self.causal else None

    def nothing(self, k: Tensor, inputs: Tensor) -> Summaries:
        """What is kept before the first token, for keys and inputs like these."""
        if self.form == "logsparse":
            return LogsparseSummaries.empty(k)
        if self.form == "axial":
            return AxialSummaries.empty(self.segment, k, inputs)
        return (MixtureSummaries if self.form == "mixture" else FixedSummaries).empty(self.segment, k)

    def step(self, state: Summaries, q: Tensor, k: Tensor, v: Tensor, inputs: Tensor) -> tuple[Tensor, Summaries]:
        """What tokens read of documents that all have seen equally many, and what is kept after them."""
        if not self.causal:
            read = mixture_both_ways if self.form == "mixture" else fixed_both_ways
            return read(q, k, v, self.segment), state
        if isinstance(state, AxialSummaries):
            return state.attend(q, k, v, inputs, summary_key=SUMMARY_KEYS[self.summary_key] or self.projected_key)
        return state.attend(q, k, v)

    def projected_key(self, q: Tensor, k: Tensor, summary: Tensor, x: Tensor) -> Tensor:  # noqa: ARG002
        """W_2 LayerNorm(W_1 v̄ + x)."""
        mixed = self.summary_norm(self.summary_in(summary.flatten(2)) + x)
        return self.summary_out(mixed).unflatten(-1, (self.heads, self.head_dim))

    def state_nbytes(self, length: int) -> int:
        """That of the tokens and of the summaries that are kept."""
        if not self.causal:
            return 0
        like = torch.empty(1, 0, self.heads, self.head_dim, dtype=self.k_proj.weight.dtype, device="meta")
        width = self.dim if self.summary_key == "projected" else 0
        return self.nothing(like, like.new_empty(1, 0, width)).bytes_after(length)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"form={self.form}, segment={self.chunk}, heads={self.heads}, head_dim={self.head_dim}"


def check(form: str, segment: int | None, summary_key: str, position: Position | None, causal: bool) -> None:
    """Raise an InputError for settings that don't fit together."""
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    if summary_key not in SUMMARY_KEYS:
        raise unknown("summary key", summary_key, SUMMARY_KEYS)
    if segment is not None and form == "logsparse":
        raise InputError(f"form logsparse has no segments, got segment={segment}")
    if segment is not None and segment < 1:
        raise InputError(f"segment must be at least 1 token, got {segment}")
    if not causal and form not in BOTH_WAYS:
        raise InputError(f"form {form} is causal; use form=fixed, or bidirectional(combiner(form={form}))")
    for hook in ("bias", "pattern"):
        if position is not None and position.has(hook):
            raise InputError(f"{type(position).__name__} changes the logits, and combiner can't; use rope")
