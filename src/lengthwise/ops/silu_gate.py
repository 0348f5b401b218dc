"""A vector gated by another, as in the linear units of today's language models.

    y = silu(a) ⊙ b          silu(a) = a σ(a)

a and b are the halves of one vector, since one linear map gives both.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lengthwise.ops import fused
from lengthwise.ops.backend import resolve

FEW = 2**14
"""Numbers up to which the kernel, on one thread, is faster."""


def silu_gate(x: Float[Tensor, "*batch both"], *, backend: str = "auto") -> Float[Tensor, "*batch half"]:
    """y for every vector (a, b).

    backend: "numba", which is for few vectors without a gradient, in float32 or float64 on the processor; or "torch",
    the definition, which "auto" takes for all else.
    """
    form = "torch" if torch.compiler.is_compiling() else resolve(backend, ("numba", "torch"), x)
    width, numbers = x.shape[-1] // 2, x.numel()
    if form == "torch" or x.shape[-1] % 2 or not 0 < numbers <= FEW or not fused.direct(x.dtype, x):
        gate, given = x.chunk(2, dim=-1)
        return functional.silu(gate) * given
    y = torch.empty((*x.shape[:-1], width), dtype=x.dtype)
    _kernel(x.dtype)(1, numbers // (2 * width), width, x.data_ptr(), y.data_ptr())
    return y


@cache
def _kernel(dtype: torch.dtype) -> fused.Native:
    """The kernel for numbers of a type."""
    kernels: Any = import_module("lengthwise.ops.numba_silu_gate")
    return fused.Native(kernels.gate_float32 if dtype == torch.float32 else kernels.gate_float64)
