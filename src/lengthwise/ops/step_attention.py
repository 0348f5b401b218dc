"""Softmax attention of one query in each row to all keys, at the speed at which a cache can be read.

    o = Σ_j p_j v_j      p = softmax over j of  c q · k_j + b_j

A token that is decoded alone reads every key and value once and does little with them. The kernel takes them in the
order in which a cache keeps them, all heads of a token together, so that memory is read in one go, and a key that
several heads of queries share is read once. Threads share the keys: each sums its part, with the largest logit and the
total of the weights, and at the end the parts are brought to one level and added.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.ops import fused
from lengthwise.ops.backend import resolve
from lengthwise.ops.bias import EVERY, Bias, Difference, Relative, Written
from lengthwise.ops.dense_attention import dense

PARTS = 4
"""Into how many parts the keys are divided for each thread at most, so that none waits long for another."""

LEAST = 256
"""Keys from which on a part is worth its sums."""

NONE = (0, 0, 0, 0, 0, 0, 0, 0)
"""What the kernel is told of a bias where there is none."""


def step_attention(
    q: Float[Tensor, "batch 1 heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    scale: float | None = None,
    bias: Bias | None = None,
    *,
    backend: str = "auto",
) -> Float[Tensor, "batch 1 heads value_dim"]:
    """o of the query of each row. Heads share keys as in `attention`; one that sees nothing, by a bias of −∞, gives 0.

    scale: c, 1/√head_dim by default.
    backend: "numba", which is for calls without a gradient, in float32 or float64 on the processor; or "torch",
    `dense`, which "auto" takes for all else.
    """
    if resolve(backend, ("numba", "torch"), q, k, v) == "torch" or not _fits(q, k, v, bias):
        return dense(q, k, v, scale, None if bias is None else bias.written().to(q.dtype))
    (batch, _, heads, width), (keys, kv_heads, more), dtype = q.shape, (k.shape[1], *v.shape[2:]), q.dtype
    threads = fused.count(keys, batch * keys * heads * (width + more))
    parts = 1 if threads == 1 else -(-max(threads, min(PARTS * threads, batch * keys // LEAST)) // batch)
    y = torch.empty((batch, 1, heads, more), dtype=dtype)
    room, totals, size = None, 0, dtype.itemsize
    if parts > 1:
        room = torch.empty(batch * parts * heads * (more + 2), dtype=dtype)
        totals = room.data_ptr() + batch * parts * heads * more * size
    kept, added = (None, NONE) if bias is None else _told(bias, dtype)
    (q_row, _, q_head, _), (k_row, k_key, k_head, _), (v_row, v_key, v_head, _) = q.stride(), k.stride(), v.stride()
    factor = fused.bits(width**-0.5 if scale is None else scale)
    sizes = batch, parts, keys, heads, kv_heads, width, more, factor, q.data_ptr(), q_row * size, q_head * size
    read = k.data_ptr(), k_row * size, k_key * size, k_head * size, v.data_ptr(), v_row * size, v_key * size
    given = *sizes, *read, v_head * size, *added, y.data_ptr(), 0 if room is None else room.data_ptr(), totals
    step, merge = _kernels(dtype)
    step(threads, *given)
    if parts > 1:
        merge(1, *given)
    del kept
    return y


@cache
def _kernels(dtype: torch.dtype) -> tuple[fused.Native, fused.Native]:
    """The kernels for numbers of a type: that of the parts, and that which adds them."""
    kernels: Any = import_module("lengthwise.ops.numba_step_attention")
    if dtype == torch.float32:
        return fused.Native(kernels.step_float32), fused.Native(kernels.merge_float32)
    return fused.Native(kernels.step_float64), fused.Native(kernels.merge_float64)


def _fits(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None) -> bool:
    """Whether the kernel can take a call."""
    (batch, queries, heads, width), (rows, keys, _, wide) = q.shape, k.shape
    if queries != 1 or rows != batch or wide != width or v.shape[:3] != k.shape[:3] or not q.numel() * v.numel():
        return False
    if q.stride()[3] != 1 or k.stride()[3] != 1 or v.stride()[3] != 1 or not fused.readable(q.dtype, q, k, v):
        return False
    if bias is None:
        return True
    sizes = zip(bias.shape, (batch, heads, 1, keys), strict=True)
    return all(size in (1, whole) for size, whole in sizes) and not fused.needs_graph(*bias.inputs)


def _told(bias: Bias, dtype: torch.dtype) -> tuple[Any, tuple[int, ...]]:
    """What the kernel is told of a bias, and what has to be kept until it has been read."""
    if isinstance(bias, Difference) and bias.f.dtype == bias.g.dtype == dtype:
        return bias, _lying(bias.g[:, :, None], -1.0, bias.f)
    if isinstance(bias, Relative) and bias.table.dtype == dtype:
        return bias, _lying(bias.table[None, :, None], 1.0)
    if isinstance(bias, Written) and bias.values.dtype == dtype:
        return bias, _lying(bias.values, 1.0)
    view = bias.view(EVERY, EVERY, dtype)
    levels, size = view.levels, dtype.itemsize
    rows, heads, _, keys = view.strides
    level, steps = (0, (0, 0)) if levels is None else (levels.data_ptr(), _steps(levels, size))
    address = view.values.data_ptr() + view.offset * size
    return view, (address, level, fused.bits(1.0), rows * size, heads * size, keys, *steps)


def _lying(values: Float[Tensor, "rows heads 1 keys"], slope: float, level: Tensor | None = None) -> tuple[int, ...]:
    """What the kernel is told of a bias, slope · values + level, that is there as a tensor."""
    size, keys = values.element_size(), 0 if values.shape[3] == 1 else values.stride(3)
    first, steps = (0, (0, 0)) if level is None else (level.data_ptr(), _steps(level, size))
    return values.data_ptr(), first, fused.bits(slope), *_steps(values, size), keys, *steps


def _steps(x: Tensor, size: int) -> tuple[int, int]:
    """The bytes from row to row and from head to head, 0 where one serves all."""
    rows, heads = x.shape[:2]
    return 0 if rows == 1 else x.stride(0) * size, 0 if heads == 1 else x.stride(1) * size
