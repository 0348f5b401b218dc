"""Pairs of channels turned by angles.

    (a, b) ← (a cos φ − b sin φ, a sin φ + b cos φ)          y = x ⊙ cos + partner(x) ⊙ sin

The sine comes in with the sign that the channel's partner has in the formula: minus for the first of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.ops import fused
from lengthwise.ops.backend import resolve

LAYOUTS = ("half", "interleaved")
"""Which channels make a pair: (i, i + D/2), or (2i, 2i + 1)."""


def rotate(
    tensors: Sequence[Float[Tensor, "batch length _ head_dim"]],
    cos: Float[Tensor, "... length 1 turned"],
    sin: Float[Tensor, "... length 1 turned"],
    layout: str,
    *,
    backend: str = "auto",
) -> list[Float[Tensor, "batch length _ head_dim"]]:
    """y of each tensor: the first channels turned, the others as they are.

    backend: "numba", which is for rows of one token, all at one position, without a gradient, in float32 or float64 on
    the processor; or "torch", the definition, which "auto" takes for all else.
    """
    form = "torch" if torch.compiler.is_compiling() else resolve(backend, ("numba", "torch"), *tensors, cos)
    if form == "torch" or not _fits(tensors, cos, sin):
        return [rotate_reference(x, cos, sin, layout) for x in tensors]
    dtype, (rows, _, _, width) = cos.dtype, tensors[0].shape
    size, given, turned = dtype.itemsize, list[int](), []
    for x in tensors:
        y = x.new_empty(x.shape)
        row, _, head, _ = x.stride()
        given += (x.shape[2], x.data_ptr(), row * size, head * size, y.data_ptr())
        turned.append(y)
    pairs = 1 if layout == "interleaved" else 0
    _kernel(dtype)(1, rows, width, cos.shape[-1], pairs, cos.data_ptr(), sin.data_ptr(), *given, 0)
    return turned


def rotate_reference(
    x: Float[Tensor, "batch length heads head_dim"],
    cos: Float[Tensor, "... length 1 turned"],
    sin: Float[Tensor, "... length 1 turned"],
    layout: str,
) -> Float[Tensor, "batch length heads head_dim"]:
    """The definition."""
    rotated, width = cos.shape[-1], x.shape[-1]
    turned = x if rotated == width else x[..., :rotated]
    if layout == "half":
        partner = turned.roll(rotated // 2, -1)
    else:
        partner = turned.unflatten(-1, (rotated // 2, 2)).flip(-1).flatten(-2)
    turned = torch.addcmul(turned * cos, partner, sin)
    return turned if rotated == width else torch.cat([turned, x[..., rotated:]], dim=-1)


@cache
def _kernel(dtype: torch.dtype) -> fused.Native:
    """The kernel for numbers of a type."""
    kernels: Any = import_module("lengthwise.ops.numba_rotation")
    return fused.Native(kernels.rotate_float32 if dtype == torch.float32 else kernels.rotate_float64)


def _fits(tensors: Sequence[Tensor], cos: Tensor, sin: Tensor) -> bool:
    """Whether the kernel can take a call."""
    first, *others = [x.shape for x in tensors]
    if cos.numel() != cos.shape[-1] or first[1] != 1 or not first.numel():
        return False
    for shape in others:
        if shape[:2] != first[:2] or shape[3] != first[3]:
            return False
    if not fused.readable(cos.dtype, cos, sin, *tensors) or not (cos.is_contiguous() and sin.is_contiguous()):
        return False
    return all(x.stride()[3] == 1 for x in tensors)
