"""The cache of attention by a pattern that doesn't show all of the past: what later tokens can still see of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.caches.buffer import appended, latest, leave
from lengthwise.caches.context import Context
from lengthwise.caches.near import NearCache
from lengthwise.contract import Layout
from lengthwise.ops.pattern import Pattern


@dataclass(frozen=True)
class SelectiveCache(NearCache):
    """The latest keys and values, as far back as a pattern's windows and blocks reach from the next token, and of the
    earlier ones those that it always shows: `Pattern.kept`.

    seen: tokens seen in each row. position: tokens seen of the document that goes on, None where that is `seen`.
    keys, values: the latest. far_keys, far_values: the earlier ones. far_places: their places in the document, −1 in
    rows that don't see them.
    """

    seen: int
    keys: Float[Tensor, "batch near kv_heads head_dim"]
    values: Float[Tensor, "batch near kv_heads value_dim"]
    far_keys: Float[Tensor, "batch far kv_heads head_dim"]
    far_values: Float[Tensor, "batch far kv_heads value_dim"]
    far_places: Int[Tensor, "batch far"]
    position: Int[Tensor, " batch"] | None = None

    @staticmethod
    def empty(
        keys: Float[Tensor, "batch new kv_heads head_dim"], values: Float[Tensor, "batch new kv_heads value_dim"]
    ) -> SelectiveCache:
        """A cache that has seen nothing, for keys and values like these."""
        none = keys[:, :0], values[:, :0]
        places = torch.zeros(keys.shape[0], 0, dtype=torch.long, device=keys.device)
        return SelectiveCache(0, *none, *none, places)

    def extend(
        self,
        keys: Float[Tensor, "batch new kv_heads head_dim"],
        values: Float[Tensor, "batch new kv_heads value_dim"],
        pattern: Pattern,
        layout: Layout | None = None,
    ) -> tuple[Context, SelectiveCache]:
        """What queries at the new tokens attend to by a causal pattern, and the cache after them. This cache stays as
        it is."""
        (near_keys, near_values), buffer = appended(self, (self.keys, self.values), (keys, values))
        near, count = (near_keys, near_values), keys.shape[1]
        position, seen = self.position_after(count, layout), self.seen + count
        lengths = {seen} if position is None else set(position.tolist())
        dropped = max(0, near_keys.shape[1] - max((n - pattern.near(n) for n in lengths), default=0))
        far = self._far(near, dropped, seen if position is None else position[:, None], pattern, layout)
        after = SelectiveCache(seen, *latest(near, dropped, buffer), *far, position)
        leave(after, buffer)
        begins = self.seen == 0 and layout is None
        return self.context(near, count, layout, self._shown(), consecutive=begins), after

    def _shown(self) -> tuple[Tensor, Tensor, Int[Tensor, "rows far"]] | None:
        """The earlier keys and values, and their places, for all rows or for each."""
        if not self.far_places.shape[1]:
            return None
        return self.far_keys, self.far_values, self.far_places[:1] if self.position is None else self.far_places

    def _far(
        self,
        near: tuple[Tensor, Tensor],
        dropped: int,
        seen: Int[Tensor, "batch 1"] | int,
        pattern: Pattern,
        layout: Layout | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is kept of the earlier keys and values, and of the first `dropped` of the near ones, after `seen`
        tokens."""
        far = self.far_keys, self.far_values, self.far_places
        if layout is not None:
            far = _those_seen(*far[:2], far[2].masked_fill(layout.starts.any(1, keepdim=True), -1))
        if not dropped:
            return far
        total = near[0].shape[1]
        places = torch.arange(-total, dropped - total, device=near[0].device)[None] + seen
        places = torch.where(pattern.lasting(places) & (places >= 0), places, -1).expand(near[0].shape[0], -1)
        moved = _those_seen(near[0][:, :dropped], near[1][:, :dropped], places)
        if not moved[2].shape[1]:
            return far
        return tuple(torch.cat(pair, dim=1) for pair in zip(far, moved, strict=True))  # type: ignore[return-value]


def _those_seen(keys: Tensor, values: Tensor, places: Int[Tensor, "batch keys"]) -> tuple[Tensor, Tensor, Tensor]:
    """The keys, values and places that some row sees."""
    stays = (places >= 0).any(0).nonzero()[:, 0]
    return keys[:, stays], values[:, stays], places[:, stays]
