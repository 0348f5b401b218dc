"""A linear map, y = W x + b, which for one vector alone is as fast as W can be read.

A token that is decoded alone reads every weight once and does next to nothing with it. PyTorch's product of a matrix
and a vector is made for the processors of one maker and reads at half the speed or less on others.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.ops import fused
from lengthwise.ops.backend import resolve

WORTH = 2**15
"""Weights from which on the kernel is worth its call."""


def linear(
    x: Float[Tensor, "*batch features"],
    weight: Float[Tensor, "outputs features"],
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    backend: str = "auto",
) -> Float[Tensor, "*batch outputs"]:
    """W x + b for every vector.

    backend: "numba", which is for one vector without a gradient, in float32 or float64 on the processor; or "torch",
    the definition, which "auto" takes for all else.
    """
    if resolve(backend, ("numba", "torch"), x, weight) == "torch" or not _alone(x, weight, bias):
        return functional.linear(x, weight, bias)
    kernels: Any = import_module("lengthwise.ops.numba_linear")
    y = torch.empty(weight.shape[0], dtype=x.dtype)
    given = fused.arrays(weight, x.reshape(-1), y)
    ranges = fused.parts(weight.shape[0], weight.numel())
    fused.run([partial(kernels.apply, *given, *rows) for rows in ranges])
    y = y.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def _alone(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel can take a call, and is worth it."""
    if x.numel() != weight.shape[1] or weight.numel() < WORTH or not weight.is_contiguous():
        return False
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if fused.needs_graph(*tensors) or torch.is_autocast_enabled("cpu"):
        return False
    return x.dtype in (torch.float32, torch.float64) and all(
        type(t) in (Tensor, nn.Parameter) and t.dtype == x.dtype and t.device.type == "cpu" for t in tensors
    )


class Linear(nn.Linear):
    """PyTorch's linear map, with its weights and their names, that a token alone passes at the speed of memory."""

    def forward(self, input: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        """W x + b."""
        return linear(input, self.weight, self.bias)
