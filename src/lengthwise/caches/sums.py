"""Sums that run along with the keys, kept as further channels of them, so that every cache carries them.

    C_i = C_{i−1} + s_i, from 0 at the beginning of a document

Sums are added up in float64 and kept in the dtype of the keys, in as many parts as give the precision of float32 or
better: C = C_1 + C_2 + …, each the rounding of what the parts before it leave over.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.contract import Layout

PARTS = {torch.float64: 1, torch.float32: 1, torch.bfloat16: 3, torch.float16: 3}
"""In how many numbers of a dtype a sum is kept."""


def channels(heads: int, kv_heads: int, dtype: torch.dtype) -> int:
    """How many channels the sums add to each head of keys."""
    return PARTS[dtype] * heads // kv_heads


def add_sums(
    keys: Float[Tensor, "batch new kv_heads head_dim"],
    steps: Float[Tensor, "batch new heads"],
    past: Float[Tensor, "batch past kv_heads _"],
    layout: Layout | None,
) -> Float[Tensor, "batch new kv_heads more"]:
    """New keys with their sums behind their channels. past: what the cache keeps, of which the last is the latest, or
    nothing where all begins."""
    kv_heads, head_dim = keys.shape[2:]
    sums = steps.double().cumsum(1)
    before = -split_sums(past[:, -1:], head_dim, steps.shape[2])[1].double() if past.shape[1] else sums[:, :1] * 0
    if layout is not None:
        index = torch.arange(sums.shape[1], device=sums.device).expand(sums.shape[:2])
        begin = torch.where(layout.starts, index, -1).cummax(1).values[..., None].expand_as(sums)
        at_begin = (sums - steps.double()).gather(1, begin.clamp_min(0))
        before = torch.where(begin < 0, before, at_begin)
    rest = (sums - before).unflatten(2, (kv_heads, -1))
    parts = []
    for _ in range(PARTS[keys.dtype]):
        parts.append(rest.to(keys.dtype))
        rest = rest - parts[-1].double()
    return torch.cat([keys, *parts], dim=3)


def split_sums(
    keys: Float[Tensor, "batch length kv_heads more"], head_dim: int, heads: int
) -> tuple[Float[Tensor, "batch length kv_heads head_dim"], Float[Tensor, "batch length heads"]]:
    """Keys without their sums, and the sums, in float32 or wider."""
    parts = keys[..., head_dim:].unflatten(3, (-1, heads // keys.shape[2]))
    return keys[..., :head_dim], parts.to(torch.promote_types(keys.dtype, torch.float32)).sum(3).flatten(2)
