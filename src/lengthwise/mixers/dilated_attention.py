"""LongNet's attention: segments of several lengths, the longer ones sampled the more sparsely, in one softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.caches.dilated import DilatedCache
from lengthwise.caches.documents import by_document
from lengthwise.contract import Layout
from lengthwise.errors import InputError, unknown
from lengthwise.mixers.attention import Attention
from lengthwise.ops.dilated_attention import WEIGHTS, branches_of
from lengthwise.positions.position import Position

SEGMENTS, DILATIONS = (2048, 4096, 8192, 16384, 32768), (1, 2, 4, 6, 12)
"""Those of the paper."""

NORMS = {"none": nn.Identity, "layernorm": nn.LayerNorm}


class DilatedAttention(Attention):
    """Softmax attention in branches of segments w_i, of which a head samples every r_i-th token.

        q, k, v = W_q x, W_k x, W_v x, turned to their positions in the document
        O_i = softmax(Q Kᵀ / √d) V among the tokens of a segment with (t mod w_i) mod r_i = s_ij
        y = W_o norm(Σ_i α_i O_i)          α_i: the share of branch i in the softmax over the keys of all branches

    s_ij: the offset of head j, in groups of neighbouring heads, see `lengthwise.ops.dilated_attention`. Segments are
    counted from the beginning of each document. Costs O(L Σ_i w_i / r_i²): where w_i and r_i grow alike, in proportion
    to L, and then O(log L) layers carry a token anywhere.

    segments: w_i. dilations: r_i, of which one is 1. heads, head_dim, position, causal, bias, depth: as in `attention`;
    a position may rotate. weights: "detached" gives α no gradient, as the authors' code does, "differentiable" does.
    norm: of what is read, over all heads: "none", or "layernorm" where the model's norms stand in front of every linear
    map.
    W_q, W_k and W_v begin Xavier uniform with a gain of 1/√2, W_o with 1, biases as 0.

    State: `DilatedCache`, what each branch sampled of its open segment: at most 2 heads d Σ_i ⌈w_i / r_i⌉ numbers.
    Ding et al. 2023, arXiv 2307.02486. Raises InputError for branches and names that don't fit.
    """

    sharpens: ClassVar[bool] = False

    breaks: ClassVar[dict[str, str]] = {
        "gradients": "the weights of the branches are constants to the backward pass, as in the authors' code; with"
        " weights=differentiable the law holds"
    }
    chunk: int

    def __init__(
        self,
        dim: int,
        *,
        segments: Sequence[int] = SEGMENTS,
        dilations: Sequence[int] = DILATIONS,
        heads: int | None = None,
        head_dim: int | None = None,
        position: Position | None = None,
        causal: bool = True,
        weights: str = "detached",
        norm: str = "none",
        bias: bool = False,
        depth: int = 1,
    ) -> None:
        for hook in ("bias", "pattern"):
            if position is not None and position.has(hook):
                raise InputError(f"{type(position).__name__} changes the logits, and dilated attention can't; use rope")
        if weights not in WEIGHTS:
            raise unknown("way to take weights", weights, WEIGHTS)
        if norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        branches = branches_of(segments, dilations)
        super().__init__(dim, heads=heads, head_dim=head_dim, position=position, causal=causal, bias=bias, depth=depth)
        self.branches, self.weights = branches, weights
        self.growth = "window"
        self.receptive_field = max(segments)
        self.chunk = math.lcm(*segments)  # after so many tokens all segments begin anew together
        self.norm = NORMS[norm](self.heads * self.head_dim)
        if weights == "differentiable" or len(branches) == 1:
            self.breaks = {}  # type: ignore[misc]
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(projection.weight, gain=1.0 if projection is self.o_proj else 2**-0.5)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "batch length dim"],
        state: DilatedCache | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], DilatedCache | None]:
        """Every token's output, and the open segments after them, which are None where attention isn't causal."""
        q, k, v = self.project(x)
        cache = DilatedCache.empty(self.branches, k, v) if state is None or not self.causal else state
        if self.position is not None and self.position.has("rotate"):
            places = cache.places(x.shape[1], layout)
            q, k = self.position.rotate(q, k, places, places)
        step = partial(DilatedCache.attend, causal=self.causal, weights=self.weights)
        o, after = by_document(step, cache, (q, k, v), layout)
        return self.o_proj(self.norm(o.flatten(2))), after if self.causal else None

    def state_nbytes(self, length: int) -> int:
        """Keys and values of what each head sampled of the open segments."""
        kept = 0
        for branch in self.branches if self.causal else ():
            place = length % branch.segment
            kept += place // branch.dilation * self.heads + branch.begun(place, self.heads)
        return 2 * kept * self.head_dim * self.k_proj.weight.element_size()

    def extra_repr(self) -> str:
        """The settings, for printing."""
        pairs = ", ".join(f"{branch.segment}/{branch.dilation}" for branch in self.branches)
        return f"heads={self.heads}, head_dim={self.head_dim}, segments/dilations={pairs}, weights={self.weights!r}"
