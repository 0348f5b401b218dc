"""The cache that keeps every key and value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.caches.buffer import appended, leave
from lengthwise.caches.context import Context, join_documents, length_of_last, new_places
from lengthwise.contract import Layout, State


@dataclass(frozen=True)
class FullCache(State):
    """All keys and values seen: L · kv_heads · (head_dim + value_dim) numbers a row.

    keys: [batch, seen, kv_heads, head_dim], turned to their positions where these rotate. values: likewise.
    start: the index in each row at which the document that goes on began; None where all rows began at index 0. Keys
    before it are of documents that have ended, and are seen no more.
    """

    keys: Float[Tensor, "batch seen kv_heads head_dim"]
    values: Float[Tensor, "batch seen kv_heads value_dim"]
    start: Int[Tensor, " batch"] | None = None

    @staticmethod
    def empty(
        keys: Float[Tensor, "batch new kv_heads head_dim"], values: Float[Tensor, "batch new kv_heads value_dim"]
    ) -> FullCache:
        """A cache that has seen nothing, for keys and values like these."""
        return FullCache(keys[:, :0], values[:, :0])

    @property
    def past(self) -> Int[Tensor, " batch"] | int:
        """Tokens seen of the document that goes on, for all rows or for each."""
        seen = self.keys.shape[1]
        return seen if self.start is None else seen - self.start

    def places(self, count: int, layout: Layout | None = None) -> Int[Tensor, "rows count"]:
        """The positions of the next `count` tokens."""
        return new_places(self.past, count, layout, self.keys.device)

    def extend(
        self,
        keys: Float[Tensor, "batch new kv_heads head_dim"],
        values: Float[Tensor, "batch new kv_heads value_dim"],
        layout: Layout | None = None,
    ) -> tuple[Context, FullCache]:
        """What queries at the new tokens attend to, and the cache after them. This cache stays as it is."""
        (all_keys, all_values), buffer = appended(self, (self.keys, self.values), (keys, values))
        if self.start is None and layout is None:
            after = FullCache(all_keys, all_values)
            leave(after, buffer)
            return Context(all_keys, all_values, None), after
        (batch, count), seen, device = keys.shape[:2], self.keys.shape[1], keys.device
        row = torch.arange(seen, device=device)[None]
        start = self.start
        ended = row.new_zeros(batch, seen) if start is None else -(row < start[:, None]).long()
        documents = join_documents(ended, count, layout)
        start = seen + count - length_of_last(self.past, count, layout, batch, device)
        if not torch.compiler.is_compiling() and not start.any():
            start = None
        places = row if self.start is None else row - self.start[:, None]
        new = self.places(count, layout)
        rows = max(places.shape[0], new.shape[0])
        positions = torch.cat([places.expand(rows, -1), new.expand(rows, -1)], dim=1)
        after = FullCache(all_keys, all_values, start)
        leave(after, buffer)
        return Context(all_keys, all_values, positions, documents), after
