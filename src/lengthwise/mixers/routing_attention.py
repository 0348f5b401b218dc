"""Routing attention: some heads see a window, the others what is like them, wherever it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.caches.routed import RoutedCache
from lengthwise.caches.windowed import WindowedCache
from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.errors import InputError, unknown
from lengthwise.mixers.attention import Attention
from lengthwise.mixers.heads import check_heads, default_heads
from lengthwise.ops import clustering
from lengthwise.ops.document_attention import document_attention, group_documents
from lengthwise.ops.gathered_attention import gathered_attention
from lengthwise.ops.initial import begin_normal
from lengthwise.ops.patterns import full
from lengthwise.ops.visibility import aligned
from lengthwise.positions.position import Position

ASSIGNMENTS = ("nearest", "topw")


@dataclass(frozen=True)
class RoutingState(State):
    """What the local heads keep, None where there are none, and what the routing heads keep."""

    local: WindowedCache | None
    routed: RoutedCache


class RoutingAttention(SequenceModule):
    """Local heads that attend in a window, and routing heads that attend inside clusters of content.

        z = (q − mean q) / std q,  the same for k                         k := q where attention is causal
        c_i = argmin_c ‖z_i − μ_c‖²                                       μ: k centroids of each routing head
        o_i = Σ_j p_ij v_j      p_ij = softmax over the last w tokens j ≤ i with c_j = c_i, of z_i · z_j / √d
        y = W_l o^local + W_r o^routing

    That is `assignment="nearest"`: exactly causal, and a sequence can be cut anywhere. `assignment="topw"` is the
    published form: each centroid takes the w tokens of the whole sequence that are nearest to it; a token may be in
    several clusters, whose outputs are summed and divided by their number + 0.01, or in none and get 0. Whom a token
    shares a cluster with then depends on later tokens, even where `causal` masks those themselves, so that this form
    declares itself not causal and has no state.

    heads: chosen near a width of 64 where it is None, two at least. routing_heads: how many of them route, half where
    it is None. clusters: k. members: w. window: of the local heads, up to the token itself, and as many after it where
    attention isn't causal. decay: λ of the centroids. commitment: β. position: for the local heads. causal: sees
    nothing that comes later; "nearest" always is.
    depth: the number of residual branches of the model.
    W_q, W_k, W_v begin as N(0, 0.02), the output maps as N(0, 0.02 / √depth); no biases. Each μ begins as a normed
    sample of N(0, 1), with N = 1 and M = μ, as if it had been seen once. (From N = 0, as published, the first steps
    divide by almost nothing: a centroid that few are near to is thrown so far out that none ever is again.)

    Centroids learn in training mode alone, as the averages of `lengthwise.ops.clustering`, without padding. They stay
    as they are during a forward pass, also where a checkpoint computes it again: what one pass has counted moves them
    when the next one begins, or when training mode ends. Until then it is kept in buffers, and saved with them. Each
    process counts its own tokens. In training a pass also leaves β · mean ‖z − μ_c‖² as `auxiliary`, which
    `lengthwise.training.auxiliary` adds to the loss; no gradient reaches μ or the choice.

    Costs O(L · (k + w) · d), least at k = √L with w = L / k. State: `WindowedCache` of the local heads and
    `RoutedCache`, whatever the length. Roy et al. 2020, arXiv 2003.05997 (which doesn't divide by √d).
    Raises InputError for sizes below 1, heads that don't divide, more routing heads than heads, an unknown assignment,
    and "nearest" where attention isn't causal.
    """

    inherits: ClassVar[tuple[str, ...]] = ("causal", "position", "depth")
    centroids: Tensor
    counts: Tensor
    sums: Tensor
    new_counts: Tensor
    new_sums: Tensor
    breaks: ClassVar[dict[str, str]] = {
        "bfloat16": "rounding can move a token between clusters that are about as near; where none moves, outputs are"
        " as close as the law asks"
    }

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        routing_heads: int | None = None,
        clusters: int = 16,
        members: int = 256,
        window: int = 256,
        assignment: str = "nearest",
        decay: float = 0.999,
        commitment: float = 1e-4,
        position: Position | None = None,
        causal: bool = True,
        depth: int = 1,
    ) -> None:
        super().__init__()
        if heads is None and dim % 2 == 0:
            heads = max(2, default_heads(dim))
        heads, _ = check_heads(dim, heads)
        self.heads = max(1, heads // 2) if routing_heads is None else routing_heads
        for name, size in {"routing_heads": self.heads, "clusters": clusters, "members": members}.items():
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        if self.heads > heads:
            raise InputError(f"there can't be more routing heads than heads: got {self.heads} of {heads}")
        if assignment not in ASSIGNMENTS:
            raise unknown("assignment", assignment, ASSIGNMENTS)
        if assignment == "nearest" and not causal:
            raise InputError('assignment="nearest" looks back alone; take assignment="topw" to see both sides')
        self.head_dim, self.clusters, self.members = dim // heads, clusters, members
        self.assignment, self.masked, self.decay, self.commitment = assignment, causal, decay, commitment
        self.causal, self.growth = assignment == "nearest", "window"
        self.chunk = members if self.causal else None
        self.local = None
        if heads > self.heads:
            sizes = {"heads": heads - self.heads, "head_dim": self.head_dim, "window": window}
            self.local = Attention(dim, position=position, causal=causal, depth=depth, **sizes)  # type: ignore[arg-type]
        width = self.heads * self.head_dim
        self.q_proj = nn.Linear(dim, width, bias=False)
        self.k_proj = None if causal else nn.Linear(dim, width, bias=False)
        self.v_proj = nn.Linear(dim, width, bias=False)
        self.o_proj = nn.Linear(width, dim, bias=False)
        begin_normal(*(map for map in (self.q_proj, self.k_proj, self.v_proj) if map is not None))
        begin_normal(self.o_proj, std=0.02 / math.sqrt(depth))
        self.begin_centroids()

    def begin_centroids(self) -> None:
        """Centroids that have learned nothing."""
        centroids = normed(torch.randn(self.heads, self.clusters, self.head_dim))
        counts = torch.ones(self.heads, self.clusters)
        self.register_buffer("centroids", centroids)
        self.register_buffer("counts", counts)
        self.register_buffer("sums", centroids.clone())
        self.register_buffer("new_counts", torch.zeros_like(counts))
        self.register_buffer("new_sums", torch.zeros_like(centroids))

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: RoutingState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], RoutingState | None]:
        """Every token's output, and what goes on, which is None where the whole sequence is needed."""
        learns = self.training and not recomputed()
        if learns:
            self.settle()
        q = normed(self.q_proj(x).unflatten(-1, (self.heads, self.head_dim)))
        k = q if self.k_proj is None else normed(self.k_proj(x).unflatten(-1, (self.heads, self.head_dim)))
        v = self.v_proj(x).unflatten(-1, (self.heads, self.head_dim))
        if self.training:
            absent = None if layout is None else layout.padding
            self._learn([q] if k is q else [q, k], absent, counts=learns)
        local = local_state = None
        if self.local is not None:
            local, local_state = self.local(x, None if state is None else state.local, layout)
        if self.assignment == "topw":
            o, routed = self._of_all(q, k, v, layout), None
        else:
            empty = RoutedCache.empty(self.clusters, self.members, k, v)
            before = empty if state is None else state.routed
            o, routed = before.attend(q, k, v, self.assign(k), layout)
        y = self.o_proj(o.flatten(2))
        y = y if local is None else local + y
        return y, None if routed is None else RoutingState(local_state, routed)

    def assign(self, z: Float[Tensor, "batch length heads head_dim"]) -> Int[Tensor, "batch length heads"]:
        """The cluster of every token."""
        return clustering.nearest(z.detach(), self.centroids.to(z.dtype))

    def _of_all(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout | None) -> Tensor:
        """The published form, each document on its own."""
        if layout is None:
            return self._clustered(q, k, v)
        numbers = layout.starts.long().cumsum(1)
        groups = group_documents(aligned(full(), q.shape[1], q.shape[1], numbers, numbers), q.shape[0])
        if groups is None:
            raise InputError("each document must be one run of its row")
        return document_attention(q, k, v, groups, self._clustered)

    def _clustered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention inside the w tokens nearest to each centroid."""
        centroids, count = self.centroids.to(q.dtype), min(self.members, q.shape[1])
        queries = clustering.closest(q.detach(), centroids, count)
        keys = queries if k is q else clustering.closest(k.detach(), centroids, count)
        return gathered_attention(q, k, v, queries, keys, last=queries if self.masked else None, combine="average")

    def _learn(self, items: list[Tensor], absent: Bool[Tensor, "batch length"] | None, *, counts: bool) -> None:
        """Leave the commitment loss and, where this pass counts, what the centroids learn from it."""
        total = number = items[0].new_zeros(())
        found = []
        for z in items:
            assigned = self.assign(z)
            own = self.centroids.to(z.dtype)[torch.arange(self.heads, device=z.device), assigned]
            apart = (z - own).square().sum(-1)
            total = total + (apart if absent is None else apart.masked_fill(absent[..., None], 0)).sum()
            number = number + (apart.numel() if absent is None else self.heads * (~absent).sum())
            found.append(clustering.statistics(z.detach(), assigned, self.clusters, absent))
        self.auxiliary = self.commitment * total / number.clamp_min(1) if torch.is_grad_enabled() else None
        if counts:
            for buffer, new in zip((self.new_counts, self.new_sums), zip(*found, strict=True), strict=True):
                buffer.copy_(torch.stack(new).sum(0))

    @torch.no_grad()
    def settle(self) -> None:
        """Move the centroids by what the last pass in training has counted."""
        if self.new_counts.any():
            averages = (self.counts, self.sums, self.new_counts, self.new_sums)
            moved = clustering.moved(*averages, self.decay)
            for buffer, value in zip((self.counts, self.sums, self.centroids), moved, strict=True):
                buffer.copy_(value)
            self.new_counts.zero_()
            self.new_sums.zero_()

    def train(self, mode: bool = True) -> RoutingAttention:
        """Training or evaluation; before evaluation the centroids take in what the last pass has counted."""
        if self.training and not mode:
            self.settle()
            self.auxiliary = None
        return super().train(mode)

    def state_nbytes(self, length: int) -> int:
        """The window of the local heads; the rings, how full they are, and the latest tokens with their clusters."""
        if not self.causal:
            return 0
        item, recent = self.q_proj.weight.element_size(), length % self.members
        tokens = self.clusters * (self.members - 1) + recent
        routed = self.heads * (2 * tokens * self.head_dim * item + 8 * (self.clusters + recent))
        return routed + (0 if self.local is None else self.local.state_nbytes(length))

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"routing_heads={self.heads}, clusters={self.clusters}, members={self.members}, {self.assignment}"


def normed(z: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
    """z with mean 0 and variance 1 over its last dimension, without a scale or a bias."""
    return F.layer_norm(z, z.shape[-1:])


def recomputed() -> bool:
    """Whether this runs inside a backward pass, as where a checkpoint computes a forward pass again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
