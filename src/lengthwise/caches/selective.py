"""The cache of attention by a pattern that doesn't show all of the past: what later tokens can still see of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.caches.buffer import Buffer, appended, leave
from lengthwise.caches.context import Context, join_documents, length_of_last, new_places
from lengthwise.contract import Layout, State
from lengthwise.ops.pattern import Pattern


@dataclass(frozen=True)
class SelectiveCache(State):
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

    @property
    def past(self) -> Int[Tensor, " batch"] | int:
        """Tokens seen of the document that goes on, for all rows or for each."""
        return self.seen if self.position is None else self.position

    def places(self, count: int, layout: Layout | None = None) -> Int[Tensor, "rows count"]:
        """The positions of the next `count` tokens."""
        return new_places(self.past, count, layout, self.keys.device)

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
        return self._context(near, count, layout), self._after(near, count, pattern, layout, buffer)

    def _context(self, near: tuple[Tensor, Tensor], count: int, layout: Layout | None) -> Context:
        batch, kept, far = near[0].shape[0], self.keys.shape[1], self.far_places.shape[1]
        past = self.past[:, None] if isinstance(self.past, Tensor) else self.past
        places, new = torch.arange(-kept, 0, device=near[0].device)[None] + past, self.places(count, layout)
        rows = batch if far else max(places.shape[0], new.shape[0])
        positions = torch.cat([x.expand(rows, -1) for x in (self.far_places.clamp_min(0)[:rows], places, new)], 1)
        documents = None
        if self.position is not None or layout is not None:
            ended = torch.cat([self.far_places, places.expand(batch, -1)], 1) < 0
            documents = join_documents(-ended.long(), count, layout)
        if not far:
            begins = self.seen == 0 and layout is None
            return Context(near[0], near[1], positions, documents, consecutive=begins)
        alike = bool((positions == positions[:1]).all())
        keys, values = torch.cat([self.far_keys, near[0]], 1), torch.cat([self.far_values, near[1]], 1)
        return Context(keys, values, positions[:1] if alike else positions, documents, consecutive=False)

    def _after(
        self, near: tuple[Tensor, Tensor], count: int, pattern: Pattern, layout: Layout | None, buffer: Buffer | None
    ) -> SelectiveCache:
        (batch, total), device, seen = near[0].shape[:2], near[0].device, self.seen + count
        position = None
        if self.position is not None or layout is not None:
            position = length_of_last(self.past, count, layout, batch, device)
            position = None if bool((position == seen).all()) else position
        lengths = {seen} if position is None else set(position.tolist())
        dropped = total - min(total, max((length - pattern.near(length) for length in lengths), default=0))
        latest = near[0][:, dropped:], near[1][:, dropped:]
        if buffer is None and not torch.is_grad_enabled() and dropped:
            latest = latest[0].clone(), latest[1].clone()  # a view would keep all that was dropped alive
        past = torch.tensor([[seen]], device=device) if position is None else position[:, None]
        places = torch.arange(-total, dropped - total, device=device) + past
        places = torch.where(pattern.lasting(places) & (places >= 0), places, -1).expand(batch, -1)
        stays = (places >= 0).any(0).nonzero()[:, 0]
        far = self.far_keys, self.far_values, self.far_places
        if layout is not None and far[2].shape[1]:
            old = far[2].masked_fill(layout.starts.any(1, keepdim=True), -1)
            goes_on = (old >= 0).any(0)
            far = far[0][:, goes_on], far[1][:, goes_on], old[:, goes_on]
        if len(stays):
            moved = near[0][:, stays], near[1][:, stays], places[:, stays]
            far = torch.cat([far[0], moved[0]], 1), torch.cat([far[1], moved[1]], 1), torch.cat([far[2], moved[2]], 1)
        after = SelectiveCache(seen, latest[0], latest[1], far[0], far[1], far[2], position)
        leave(after, buffer)
        return after
