"""The cache of attention in a window: the latest keys and values and, where a pattern shows them, the first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.caches.buffer import appended, latest, leave
from lengthwise.caches.context import Context
from lengthwise.caches.near import NearCache
from lengthwise.contract import Layout


@dataclass(frozen=True)
class WindowedCache(NearCache):
    """The last window − 1 keys and values, which with the next token make the window, and the first keys of a document.

    window, first: how many, as in the patterns `window(n)` and `first(n)`.
    seen: tokens seen in each row. position: tokens seen of the document that goes on, None where that is `seen`.
    keys, values: [batch, min(seen, window − 1), …]. first_keys, first_values: [batch, min(seen, first), …], kept from
    the beginning although the window still holds them then.
    """

    window: int
    first: int
    seen: int
    keys: Float[Tensor, "batch near kv_heads head_dim"]
    values: Float[Tensor, "batch near kv_heads value_dim"]
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

    def extend(
        self,
        keys: Float[Tensor, "batch new kv_heads head_dim"],
        values: Float[Tensor, "batch new kv_heads value_dim"],
        layout: Layout | None = None,
    ) -> tuple[Context, WindowedCache]:
        """What queries at the new tokens attend to, and the cache after them. This cache stays as it is."""
        (near_keys, near_values), buffer = appended(self, (self.keys, self.values), (keys, values))
        near, count = (near_keys, near_values), keys.shape[1]
        position = self.position_after(count, layout)
        kept = latest(near, max(0, near_keys.shape[1] - (self.window - 1)), buffer)
        first = self._first((keys, values), layout, position)
        after = WindowedCache(self.window, self.first, self.seen + count, *kept, *first, position)
        leave(after, buffer)
        return self.context(near, count, layout, self._beginning()), after

    def _beginning(self) -> tuple[Tensor, Tensor, Int[Tensor, "rows gone"]] | None:
        """The first keys and values that have left the window, and their places."""
        kept = self.keys.shape[1]
        gone = min(self.first_keys.shape[1], self.seen - kept)
        if not gone:
            return None
        places = torch.arange(gone, device=self.keys.device)[None]
        if self.position is not None:
            # Where the document has fewer tokens, or the window holds them too, they aren't to be seen here.
            places = torch.where(places < self.position[:, None] - kept, places, -1)
        return self.first_keys[:, :gone], self.first_values[:, :gone], places

    def _first(
        self, new: tuple[Tensor, Tensor], layout: Layout | None, position: Int[Tensor, " batch"] | None
    ) -> tuple[Tensor, Tensor]:
        """The first keys and values of the document that goes on after the new tokens, of which it has `position`."""
        old, count = (self.first_keys, self.first_values), new[0].shape[1]
        begun, wanted = old[0].shape[1], min(self.first, self.seen + count)
        alike = layout is None and self.position is None
        if wanted == begun and (alike or not wanted):
            return old
        if alike:
            new = new[0][:, : wanted - begun], new[1][:, : wanted - begun]
        keys, values = (torch.cat(pair, dim=1) for pair in zip(old, new, strict=True))
        if alike:
            return keys, values
        # Its tokens before the new ones; below 0, it began that far behind the first of these.
        before = self.seen if position is None else position[:, None] - count
        slots = torch.arange(wanted, device=new[0].device)[None]
        index = torch.where(slots < before, slots, begun - before + slots).clamp(0, begun + count - 1)
        index = index[:, :, None, None]
        return keys.take_along_dim(index, dim=1), values.take_along_dim(index, dim=1)
