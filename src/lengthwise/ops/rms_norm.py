"""Vectors divided by the root of their mean square.

    y = w ⊙ x / √(mean of x² + ε)

Zhang and Sennrich 2019, arXiv 1910.07467. PyTorch makes this of seven operations, each of which takes a token decoded
alone as long as all of the arithmetic.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.ops import fused
from lengthwise.ops.backend import resolve

FEW = 2**14
"""Numbers up to which the kernel, on one thread, is faster."""


def rms_norm(
    x: Float[Tensor, "*batch dim"],
    weight: Float[Tensor, " dim"] | None = None,
    eps: float | None = None,
    *,
    backend: str = "auto",
) -> Float[Tensor, "*batch dim"]:
    """y for every vector. eps: ε, the spacing of numbers at 1 by default.

    backend: "numba", which is for few vectors without a gradient, in float32 or float64 on the processor; or "torch",
    the definition, which "auto" takes for all else.
    """
    if resolve(backend, ("numba", "torch"), x, weight) == "torch" or not _few(x, weight):
        return functional.rms_norm(x, x.shape[-1:], weight, eps)
    y, dim = torch.empty_like(x), x.shape[-1]
    added = fused.bits(torch.finfo(x.dtype).eps if eps is None else eps)
    factor = 0 if weight is None else weight.data_ptr()
    _kernel(x.dtype)(1, x.numel() // dim, dim, added, x.data_ptr(), factor, y.data_ptr())
    return y


def _few(x: Tensor, weight: Tensor | None) -> bool:
    """Whether the kernel can take a call, and is worth it."""
    fits = weight is None or weight.shape == x.shape[-1:]
    return 0 < x.numel() <= FEW and fits and fused.direct(x.dtype, x, weight)


@cache
def _kernel(dtype: torch.dtype) -> fused.Native:
    """The kernel for numbers of a type."""
    kernels: Any = import_module("lengthwise.ops.numba_rms_norm")
    return fused.Native(kernels.norm_float32 if dtype == torch.float32 else kernels.norm_float64)


class RMSNorm(nn.RMSNorm):
    """PyTorch's norm by the mean square, with its weight and its name, in one step for a token alone."""

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """w ⊙ x / √(mean of x² + ε)."""
        if self.normalized_shape != x.shape[-1:]:  # several dimensions, or an error that PyTorch has the words for
            return super().forward(x)
        return rms_norm(x, self.weight, self.eps)
