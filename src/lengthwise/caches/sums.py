"""Sums that run along with the keys, kept as further channels of them, so that every cache carries them.

    C_i = C_{i−1} + s_i, from 0 at the beginning of a document

Sums are added up in float64 and kept in the dtype of the keys, in as many parts as give the precision of float32 or
better: C = u_1 C_1 + u_2 C_2 + …, each the rounding of what the parts before it leave over, in a unit u of its own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.contract import Layout

UNITS = {torch.float64: (1,), torch.float32: (1,), torch.bfloat16: (1, 1, 1), torch.float16: (256, 1, 1)}
"""The units of the numbers of a dtype in which a sum is kept, the last of them 1. So float16, which ends at 65504,
holds sums up to 2²⁴."""


def channels(heads: int, kv_heads: int, dtype: torch.dtype) -> int:
    """How many channels the sums add to each head of keys."""
    return len(UNITS[dtype]) * heads // kv_heads


def add_sums(
    keys: Float[Tensor, "batch new kv_heads head_dim"],
    steps: Float[Tensor, "batch new heads"],
    past: Float[Tensor, "batch past kv_heads _"],
    layout: Layout | None,
) -> Float[Tensor, "batch new kv_heads more"]:
    """New keys with their sums behind their channels. past: what the cache keeps, of which the last is the latest, or
    nothing where all begins."""
    kv_heads, head_dim = keys.shape[2:]
    alone = steps.shape[1] == 1 and past.shape[1] > 0 and layout is None
    if alone and past.dtype == keys.dtype == steps.dtype and UNITS[keys.dtype] == (1,):
        # One step is added as exactly in the dtype itself.
        return torch.cat([keys, past[:, -1:, :, head_dim:] + steps.unflatten(2, (kv_heads, -1))], dim=3)
    sums = steps.double().cumsum(1)
    before = -split_sums(past[:, -1:], head_dim, steps.shape[2])[1].double() if past.shape[1] else sums[:, :1] * 0
    if layout is not None:
        index = torch.arange(sums.shape[1], device=sums.device).expand(sums.shape[:2])
        begin = torch.where(layout.starts, index, -1).cummax(1).values[..., None].expand_as(sums)
        at_begin = (sums - steps.double()).gather(1, begin.clamp_min(0))
        before = torch.where(begin < 0, before, at_begin)
    rest = (sums - before).unflatten(2, (kv_heads, -1))
    parts = []
    for unit in UNITS[keys.dtype][:-1]:
        parts.append((rest.detach() / unit).to(keys.dtype))
        rest = rest - unit * parts[-1].double()
    return torch.cat([keys, *parts, rest.to(keys.dtype)], dim=3)


def split_sums(
    keys: Float[Tensor, "batch length kv_heads more"], head_dim: int, heads: int
) -> tuple[Float[Tensor, "batch length kv_heads head_dim"], Float[Tensor, "batch length heads"]]:
    """Keys without their sums, and the sums, in float32 or wider."""
    parts = keys[..., head_dim:].unflatten(3, (-1, heads // keys.shape[2]))
    if parts.shape[3] == 1 and keys.dtype in (torch.float32, torch.float64):
        return keys[..., :head_dim], parts.select(3, 0).flatten(2)
    parts = parts.to(torch.promote_types(keys.dtype, torch.float32))
    if keys.dtype == torch.float16 and parts.shape[3] > 1:  # one alone was cast from another dtype
        parts = parts * parts.new_tensor(UNITS[keys.dtype])[:, None]
    return keys[..., :head_dim], parts.sum(3).flatten(2)
