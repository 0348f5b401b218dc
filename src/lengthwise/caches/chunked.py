"""The cache of attention inside chunks: the keys and values of the chunk that is still open."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.caches.buffer import appended, latest, leave
from lengthwise.contract import Layout, State
from lengthwise.errors import InputError
from lengthwise.ops.chunk_attention import Bias, chunk_attention


@dataclass(frozen=True)
class ChunkedCache(State):
    """The keys and values of the open chunk: (L mod c) · kv_heads · (head_dim + value_dim) numbers a row.

    chunk: c. Chunks are counted from the beginning of each document; one that is full is dropped.
    keys: [batch, kept, kv_heads, head_dim]. values: likewise. open: how many of the last of them are the row's own open
    chunk; None where all are.
    """

    chunk: int
    keys: Float[Tensor, "batch kept kv_heads head_dim"]
    values: Float[Tensor, "batch kept kv_heads value_dim"]
    open: Int[Tensor, " batch"] | None = None

    @staticmethod
    def empty(
        chunk: int,
        keys: Float[Tensor, "batch new kv_heads head_dim"],
        values: Float[Tensor, "batch new kv_heads value_dim"],
    ) -> ChunkedCache:
        """A cache that has seen nothing, for keys and values like these. Raises InputError for a chunk below 1."""
        if chunk < 1:
            raise InputError(f"chunk must be at least 1 token, got {chunk}")
        return ChunkedCache(chunk, keys[:, :0], values[:, :0])

    def counted(self, count: int, layout: Layout | None = None) -> Int[Tensor, "rows count"]:
        """How far each of the next tokens is from the beginning of its document, or of the chunk open now where the
        document goes on."""
        step = torch.arange(count, device=self.keys.device)[None]
        past = torch.full_like(step[:, :1], self.keys.shape[1]) if self.open is None else self.open[:, None]
        if layout is None:
            return step + past
        begun = layout.starts
        latest = torch.where(begun, step, -1).cummax(1).values
        return step - torch.where(latest < 0, -past, latest)

    def places(self, count: int, layout: Layout | None = None) -> Int[Tensor, "rows count"]:
        """The places of the next `count` tokens in their chunks."""
        return self.counted(count, layout) % self.chunk

    def slots(self, count: int, layout: Layout | None = None) -> Int[Tensor, "rows keys"] | None:
        """Where the kept and the next tokens are, as `chunk_attention` takes it; None where all follow each other."""
        if layout is None and self.open is None:
            return None
        batch, kept = self.keys.shape[:2]
        place = self.places(count, layout).expand(batch, -1)
        begins = place == 0
        if layout is not None:
            begins = begins & ~layout.padding
        new = begins.cumsum(1) * self.chunk + place
        if layout is not None:
            new = new.masked_fill(layout.padding, -1)
        step = torch.arange(kept, device=place.device)[None]
        opened = kept if self.open is None else self.open[:, None]
        past = (step - kept + opened).expand(batch, -1).clamp_min(-1)
        return torch.cat([past, new], 1)

    def attend(
        self,
        q: Float[Tensor, "batch new heads head_dim"],
        keys: Float[Tensor, "batch new kv_heads head_dim"],
        values: Float[Tensor, "batch new kv_heads value_dim"],
        layout: Layout | None = None,
        *,
        scale: float | None = None,
        bias: Bias | None = None,
        causal: bool = True,
    ) -> tuple[Float[Tensor, "batch new heads value_dim"], ChunkedCache]:
        """What new tokens read in their chunks, and the cache after them. This cache stays as it is.

        scale, bias, causal: as in `chunk_attention`.
        """
        (batch, count), kept = keys.shape[:2], self.keys.shape[1]
        (near, read), buffer = appended(self, (self.keys, self.values), (keys, values))
        slots = self.slots(count, layout)
        o = chunk_attention(
            q, near.to(q.dtype), read.to(q.dtype), self.chunk, slots=slots, scale=scale, bias=bias, causal=causal
        )
        if slots is None:
            left, open = (kept + count) % self.chunk, None
        else:
            open = self._open(slots)
            left = int(open.max()) if batch else 0
            open = None if bool((open == left).all()) else open
        after = ChunkedCache(self.chunk, *latest((near, read), near.shape[1] - left, buffer), open)
        leave(after, buffer)
        return o, after

    def _open(self, slots: Int[Tensor, "batch keys"]) -> Int[Tensor, " batch"]:
        """How many tokens of each row the chunk has that goes on."""
        if slots.shape[1] == 0:
            return slots.new_zeros(slots.shape[0])
        last = slots[:, -1]
        return torch.where(last < 0, 0, (last + 1) % self.chunk)
