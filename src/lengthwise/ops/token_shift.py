"""Token shift: the token before each one, as RWKV mixes it with the present one.

prev_t = x_{t-1}, and 0 before the first token of a document          x, prev: [batch, length, dim]
mix_t = μ ⊙ x_t + (1 − μ) ⊙ prev_t
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Sequence = Float[Tensor, "batch length dim"]


def token_shift(
    x: Sequence, before: Float[Tensor, "batch dim"] | None = None, starts: Bool[Tensor, "batch length"] | None = None
) -> tuple[Sequence, Float[Tensor, "batch dim"]]:
    """prev for every token, and the last token in float32 (float64 if x is), to go on from.

    before: the token before the first one; zeros if None. starts: True where a token begins a document.
    """
    if before is None:
        before = x.new_zeros(x.shape[0], x.shape[2], dtype=torch.promote_types(x.dtype, torch.float32))
    past = torch.cat([before.to(x.dtype)[:, None], x], 1)
    # A copy, so that the state doesn't keep the whole sequence alive.
    last = past[:, -1].to(before.dtype, copy=True) if x.shape[1] else before
    past = past[:, :-1]
    return past if starts is None else past.masked_fill(starts[..., None], 0), last


Share = Float[Tensor, " dim"] | Float[Tensor, "views dim"]


def mix(before: Sequence, x: Sequence, share: Share) -> Sequence:
    """μ x + (1 − μ) before. share: μ, or one for each of several views of the sequence (see `for_rows`)."""
    return torch.lerp(before, x, for_rows(share, x).to(x.dtype))


def for_rows(vectors: Share, x: Sequence) -> Tensor:
    """A vector for all rows of x as it is; of [views, dim] each vector for its part of the rows, which hold the views
    one after the other."""
    if vectors.ndim == 1:
        return vectors
    return vectors.repeat_interleave(x.shape[0] // vectors.shape[0], 0)[:, None]
