"""The cache of attention in a window: the latest keys and values and, where a pattern shows them, the first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.caches.buffer import Buffer, appended, leave
from lengthwise.caches.context import Context, join_documents, length_of_last, new_places
from lengthwise.contract import Layout, State


@dataclass(frozen=True)
class WindowedCache(State):
    """The last window − 1 keys and values, which with the next token make the window, and the first keys of a document.

    window, first: how many, as in the patterns `window(n)` and `first(n)`.
    seen: tokens seen in each row. position: tokens seen of the document that goes on, None where that is `seen`.
    keys, values: [batch, min(seen, window − 1), …]. first_keys, first_values: [batch, min(seen, first), …], kept from
    the beginning although the window still holds them then.
    """

    window: int
    first: int
    seen: int
    keys: Float[Tensor, "batch kept kv_heads head_dim"]
    values: Float[Tensor, "batch kept kv_heads value_dim"]
    first_keys: Float[Tensor, "batch begun kv_heads head_dim"]
    first_values: Float[Tensor, "batch begun kv_heads value_dim"]
    position: Int[Tensor, " batch"] | None = None

    @staticmethod
    def empty(
        window: int,
        first: int,
        keys: Float[Tensor, "batch new kv_heads head_dim"],
        values: Float[Tensor, "batch new kv_heads value_dim"],
    ) -> WindowedCache:
        """A cache that has seen nothing, for keys and values like these."""
        none = keys[:, :0], values[:, :0]
        return WindowedCache(window, first, 0, *none, *none)

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
        layout: Layout | None = None,
    ) -> tuple[Context, WindowedCache]:
        """What queries at the new tokens attend to, and the cache after them. This cache stays as it is."""
        (near_keys, near_values), buffer = appended(self, (self.keys, self.values), (keys, values))
        context = self._context(keys, near_keys, near_values, layout)
        return context, self._after(keys, values, near_keys, near_values, layout, buffer)

    def _context(self, keys: Tensor, near_keys: Tensor, near_values: Tensor, layout: Layout | None) -> Context:
        (batch, count), kept, device = keys.shape[:2], self.keys.shape[1], keys.device
        past = self.past[:, None] if isinstance(self.past, Tensor) else self.past
        steps = torch.arange(-kept, 0, device=device)[None]
        places, new = steps + past, self.places(count, layout)
        gone = min(self.first_keys.shape[1], self.seen - kept)
        beginning = torch.arange(gone, device=device)[None]
        rows = max(places.shape[0], new.shape[0])
        positions = torch.cat([x.expand(rows, -1) for x in (beginning, places, new)], dim=1)
        documents = None
        if self.position is not None or layout is not None:
            ended = -(places < 0).long().expand(batch, -1)
            # A first key that the window holds too, or that the document hasn't reached, is not to be seen here.
            absent = -(beginning >= past - kept).long()
            documents = join_documents(torch.cat([absent.expand(batch, -1), ended], 1), count, layout)
        if not gone:
            return Context(near_keys, near_values, positions, documents)
        all_keys, all_values = (
            torch.cat([first[:, :gone].to(near.dtype), near], dim=1)
            for first, near in ((self.first_keys, near_keys), (self.first_values, near_values))
        )
        return Context(all_keys, all_values, positions, documents, consecutive=False)

    def _after(
        self,
        keys: Tensor,
        values: Tensor,
        near_keys: Tensor,
        near_values: Tensor,
        layout: Layout | None,
        buffer: Buffer | None,
    ) -> WindowedCache:
        batch, count = keys.shape[:2]
        seen = self.seen + count
        position = None
        if self.position is not None or layout is not None:
            position = length_of_last(self.past, count, layout, batch, keys.device)
            if not torch.compiler.is_compiling() and bool((position == seen).all()):
                position = None
        kept = slice(near_keys.shape[1] - min(self.window - 1, near_keys.shape[1]), None)
        latest = near_keys[:, kept], near_values[:, kept]
        if buffer is None and not torch.is_grad_enabled() and kept.start:
            # A view would keep all that has left the window alive.
            latest = latest[0].clone(), latest[1].clone()
        first = self._first(keys, values, layout, position)
        after = WindowedCache(self.window, self.first, seen, *latest, *first, position)
        leave(after, buffer)
        return after

    def _first(
        self, keys: Tensor, values: Tensor, layout: Layout | None, position: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The first keys and values of the document that goes on after the new tokens."""
        count, begun = keys.shape[1], self.first_keys.shape[1]
        wanted = min(self.first, self.seen + count)
        if layout is None and self.position is None:
            if wanted == begun:
                return self.first_keys, self.first_values
            more = keys[:, : wanted - begun], values[:, : wanted - begun]
            return torch.cat([self.first_keys, more[0]], 1), torch.cat([self.first_values, more[1]], 1)
        if wanted == 0:
            return self.first_keys, self.first_values
        slots = torch.arange(wanted, device=keys.device)[None]
        past = (
            torch.full_like(keys[:, 0, 0, 0], self.seen, dtype=torch.long) if self.position is None else self.position
        )
        anew = layout.starts.any(1) if layout is not None else torch.zeros_like(past, dtype=torch.bool)
        now = past + count if position is None else position
        begin = torch.where(anew, begun + count - now, begun - past)[:, None]
        index = torch.where(~anew[:, None] & (slots < past[:, None]), slots, begin + slots).clamp(0, begun + count - 1)
        first_keys, first_values = (
            torch.cat(pair, dim=1).gather(1, index[:, :, None, None].expand(-1, -1, *pair[0].shape[2:]))
            for pair in ((self.first_keys, keys), (self.first_values, values))
        )
        return first_keys, first_values
