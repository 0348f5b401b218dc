"""A linear map, y = W x + b, which for one vector alone is as fast as W can be read.

A token that is decoded alone reads every weight once and does next to nothing with it. PyTorch's product of a matrix
and a vector is made for the processors of one maker and reads at half the speed or less on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, TypeGuard

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
    rows, columns = weight.shape
    fused_form = resolve(backend, ("numba", "torch"), x, weight) == "numba" and rows * columns >= WORTH
    if fused_form and _alone(x, columns) and _fits(rows, bias) and fused.direct(x.dtype, x, weight, bias):
        return _apply(x, rows, [rows, weight.data_ptr(), 0 if bias is None else bias.data_ptr()])
    return functional.linear(x, weight, bias)


def together(x: Float[Tensor, "*batch features"], maps: Sequence[nn.Module]) -> Sequence[Float[Tensor, "*batch _"]]:
    """What several maps make of the same vectors. Linear ones that no hook watches take a vector alone in one go."""
    form = "torch" if torch.compiler.is_compiling() else resolve("auto", ("numba", "torch"), x)
    if form == "numba" and x.numel() == x.shape[-1]:
        sizes, given, tensors = list[int](), list[int](), [x]
        for one in maps:
            if not _unwatched(one):
                break
            weight, bias = one.weight, one.bias
            rows, columns = weight.shape
            if not (_alone(x, columns) and _fits(rows, bias)):
                break
            sizes.append(rows)
            tensors += (weight,) if bias is None else (weight, bias)
            given += (rows, weight.data_ptr(), 0 if bias is None else bias.data_ptr())
        rows = sum(sizes)
        if len(sizes) == len(maps) and rows * x.numel() >= WORTH and fused.direct(x.dtype, *tensors):
            return _apply(x, rows, given).split_with_sizes(sizes, -1)
    return [one(x) for one in maps]


def _apply(x: Tensor, rows: int, given: list[int]) -> Tensor:
    """The kernel's results, one map's after the other's, of `rows` in all. given: what it takes of each map."""
    columns = x.shape[-1]
    y = torch.empty((*x.shape[:-1], rows), dtype=x.dtype)
    parts = fused.count(rows, rows * columns)
    _kernel(x.dtype)(parts, rows, columns, x.data_ptr(), y.data_ptr(), *given)
    return y


@cache
def _kernel(dtype: torch.dtype) -> fused.Native:
    """The kernel for numbers of a type."""
    kernels: Any = import_module("lengthwise.ops.numba_linear")
    return fused.Native(kernels.apply_float32 if dtype == torch.float32 else kernels.apply_float64)


def _alone(x: Tensor, columns: int) -> bool:
    """Whether x is one vector, of this width."""
    return x.numel() == columns and x.shape[-1] == columns


def _fits(rows: int, bias: Tensor | None) -> bool:
    """Whether a bias, if there is one, has a number for each row."""
    return bias is None or bias.numel() == rows


def _unwatched(module: nn.Module) -> TypeGuard[Linear]:
    """Whether a module is a linear map whose call is its formula and nothing else."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) is Linear and not hooks and "forward" not in module.__dict__


class Linear(nn.Linear):
    """PyTorch's linear map, with its weights and their names, that a token alone passes at the speed of memory."""

    def forward(self, input: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        """W x + b."""
        return linear(input, self.weight, self.bias)
