"""Room in which a growing cache appends without copying the past, although caches are values."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.contract import State

SPARE = 64
"""The least room left for further tokens when a buffer is made."""


class Buffer:
    """Keys and values with room behind them. `used` tokens have been written, by the newest cache that lies in it."""

    def __init__(self, keys: Tensor, values: Tensor, spare: int) -> None:
        length = keys.shape[1]
        self.keys, self.values = (x.new_empty(x.shape[0], length + spare, *x.shape[2:]) for x in (keys, values))
        self.keys[:, :length], self.values[:, :length] = keys, values
        self.used = length

    def takes(self, end: int, count: int) -> bool:
        """Whether a cache that ends at `end` may write `count` tokens behind itself."""
        writable = torch.is_inference_mode_enabled() or not self.keys.is_inference()
        return writable and end == self.used and end + count <= self.keys.shape[1]

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Append tokens."""
        end = self.used + keys.shape[1]
        self.keys[:, self.used : end], self.values[:, self.used : end] = keys, values
        self.used = end

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """The last `count` tokens, without a copy."""
        return self.keys[:, self.used - count : self.used], self.values[:, self.used - count : self.used]


def appended(
    cache: State,
    past: tuple[Float[Tensor, "batch past kv_heads head_dim"], Float[Tensor, "batch past kv_heads value_dim"]],
    new: tuple[Float[Tensor, "batch new kv_heads head_dim"], Float[Tensor, "batch new kv_heads value_dim"]],
) -> tuple[Tensor, Tensor, Buffer | None]:
    """The tokens of `past` with `new` behind them, and the buffer they lie in, which the next cache takes over.

    The past isn't copied if the cache is the newest in its buffer; otherwise it is copied into a buffer of its own with
    room for half as many tokens again, so that tokens appended one by one cost one copy of a few of them each. With
    gradients, inside `torch.compile`, or where more comes than was there, the two are concatenated without a buffer.
    """
    past_keys, past_values = past
    keys, values = (t.to(p.dtype) for t, p in zip(new, past, strict=True))
    length, count = past_keys.shape[1], keys.shape[1]
    if length == 0 or count == 0:
        kept = (past_keys, past_values) if count == 0 else (keys, values)
        return *kept, buffer_of(cache) if count == 0 else None
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or count >= length:
        return torch.cat([past_keys, keys], 1), torch.cat([past_values, values], 1), None
    buffer = buffer_of(cache)
    if buffer is None or not buffer.takes(_end(buffer, past_keys), count):
        buffer = Buffer(past_keys, past_values, count + max(SPARE, length // 2))
    buffer.write(keys, values)
    return *buffer.last(length + count), buffer


def buffer_of(cache: State) -> Buffer | None:
    """The buffer that a cache lies in, if it was left one. What is mapped, moved or loaded owns its tensors alone."""
    return cache.__dict__.get("_buffer")


def leave(cache: State, buffer: Buffer | None) -> None:
    """Remember where a cache lies. It is no field, so that a cache that is mapped or compared is its tensors alone."""
    object.__setattr__(cache, "_buffer", buffer)


def _end(buffer: Buffer, keys: Tensor) -> int:
    """The number of tokens of the buffer up to the end of a view of it."""
    return (keys.storage_offset() - buffer.keys.storage_offset()) // buffer.keys.stride(1) + keys.shape[1]
