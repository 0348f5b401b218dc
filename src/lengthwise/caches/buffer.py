"""Room in which a growing cache appends without copying the past, although caches are values."""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.contract import State

SPARE = 64
"""The least room left for further tokens when a buffer is made."""


Tensors = TypeVar("Tensors", bound=tuple[Tensor, ...])


class Buffer:
    """Tensors [batch, tokens, ...] with room behind them.

    `used` tokens have been written, by the newest cache that lies in it.
    """

    def __init__(self, past: tuple[Tensor, ...], spare: int) -> None:
        length = past[0].shape[1]
        self.tensors = tuple(x.new_empty(x.shape[0], length + spare, *x.shape[2:]) for x in past)
        self.used = 0
        self.write(past)

    def takes(self, end: int, count: int) -> bool:
        """Whether a cache that ends at `end` may write `count` tokens behind itself."""
        first = self.tensors[0]
        writable = torch.is_inference_mode_enabled() or not first.is_inference()
        return writable and end == self.used and end + count <= first.shape[1]

    def write(self, new: tuple[Tensor, ...]) -> None:
        """Append tokens."""
        count = new[0].shape[1]
        for room, tokens in zip(self.tensors, new, strict=True):
            room.narrow(1, self.used, count).copy_(tokens)
        self.used += count

    def last(self, count: int) -> tuple[Tensor, ...]:
        """The last `count` tokens, without a copy."""
        begin = self.used - count
        return tuple([room.narrow(1, begin, count) for room in self.tensors])


def appended(
    cache: State,
    past: tuple[Float[Tensor, "batch past ..."], ...],
    new: tuple[Float[Tensor, "batch new ..."], ...],
) -> tuple[tuple[Tensor, ...], Buffer | None]:
    """The tokens of `past` with `new` behind them, and the buffer they lie in, which the next cache takes over.

    The past isn't copied if the cache is the newest in its buffer; otherwise it is copied into a buffer of its own with
    room for half as many tokens again, so that tokens appended one by one cost one copy of a few of them each. With
    gradients, inside `torch.compile`, or where more comes than was there, the two are concatenated without a buffer.
    """
    if [t.dtype for t in new] != [p.dtype for p in past]:
        new = tuple(t.to(p.dtype) for t, p in zip(new, past, strict=True))
    length, count = past[0].shape[1], new[0].shape[1]
    if count == 0:
        return past, buffer_of(cache)
    if length == 0:
        return new, None
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or count >= length:
        return tuple(torch.cat(pair, 1) for pair in zip(past, new, strict=True)), None
    buffer = buffer_of(cache)
    if buffer is None or not buffer.takes(_end(buffer, past[0]), count):
        buffer = Buffer(past, count + max(SPARE, length // 2))
    buffer.write(new)
    return buffer.last(length + count), buffer


def latest(tensors: Tensors, dropped: int, buffer: Buffer | None) -> Tensors:
    """The tokens behind the first `dropped`: views, or copies where a view alone would keep those alive."""
    kept = tuple(x[:, dropped:] for x in tensors)
    views = not dropped or buffer is not None or torch.is_grad_enabled()
    return kept if views else tuple(x.clone() for x in kept)  # type: ignore[return-value]


def buffer_of(cache: State) -> Buffer | None:
    """The buffer that a cache lies in, if it was left one. What is mapped, moved or loaded owns its tensors alone."""
    return cache.__dict__.get("_buffer")


def leave(cache: State, buffer: Buffer | None) -> None:
    """Remember where a cache lies. It is no field, so that a cache that is mapped or compared is its tensors alone."""
    object.__setattr__(cache, "_buffer", buffer)


def _end(buffer: Buffer, past: Tensor) -> int:
    """The number of tokens of the buffer up to the end of a view of its first tensor."""
    first = buffer.tensors[0]
    return (past.storage_offset() - first.storage_offset()) // first.stride(1) + past.shape[1]
