"""Cutting a sequence into chunks, for ops whose fast form is a loop over chunks.

    [batch, length, heads, dim]  →  [chunks, rows, chunk, dim]         rows: batch times heads

The last chunk is filled up with zeros, which write nothing into a matrix state.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

TOKENS_AT_ONCE = 4096
"""Tokens times rows that a loop over chunks takes in one round: enough for large matrix products, and little enough
that what is computed for them stays in the processor's cache."""


def state_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of a recurrent state: float64 where an input is, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def spans(length: int, chunk: int, rows: int) -> list[tuple[int, int]]:
    """(begin, end) of runs of whole chunks, each of about `TOKENS_AT_ONCE` tokens over all rows."""
    width = max(TOKENS_AT_ONCE // (max(rows, 1) * chunk), 1) * chunk
    return [(begin, min(begin + width, length)) for begin in range(0, length, width)]


def split(
    x: Float[Tensor, "batch length heads dim"], begin: int, end: int, chunk: int, dtype: torch.dtype
) -> Float[Tensor, "chunks rows chunk dim"]:
    """The tokens from `begin` to `end` in chunks, contiguous."""
    x = x[:, begin:end]
    if missing := -x.shape[1] % chunk:
        x = functional.pad(x, (0, 0, 0, 0, 0, missing))
    x = x.unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4)
    return x.to(dtype, memory_format=torch.contiguous_format).flatten(1, 2)


def put(whole: Float[Tensor, "batch length heads dim"], begin: int, x: Float[Tensor, "chunks rows chunk dim"]) -> None:
    """Write chunks into a sequence from `begin` on, as far as it goes; the inverse of `split`."""
    x = x.unflatten(1, (whole.shape[0], -1)).permute(1, 0, 3, 2, 4)
    chunks, chunk = x.shape[1:3]
    full = min(chunks, (whole.shape[1] - begin) // chunk)
    whole[:, begin : begin + full * chunk].unflatten(1, (full, chunk)).copy_(x[:, :full])
    if full < chunks:
        rest = whole[:, begin + full * chunk :]
        rest.copy_(x[:, full, : rest.shape[1]])
