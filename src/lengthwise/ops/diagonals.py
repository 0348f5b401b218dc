"""Sums along the diagonals of matrices: the gradient of what depends on a distance alone.

t_k = Σ_{j − i = k} x_ij
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lengthwise.ops import fused


def diagonals(x: Float[Tensor, "batch heads queries keys"], heads: int) -> Float[Tensor, "_ span"]:
    """The sums of the diagonals, from the last query and first key on; of all heads together where heads is 1."""
    rows, columns = x.shape[2:]
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        kernels: Any = import_module("lengthwise.ops.numba_diagonals")
        total = x.new_zeros(heads, rows + columns - 1)
        kernels.add_diagonals(*fused.arrays(x), total.numpy())
        return total
    # Rows a place longer than they lie apart shift each one further.
    x = x.sum(0).sum_to_size(heads, rows, columns).flip(1)
    padded = functional.pad(x, (0, rows)).flatten(1)[:, : rows * (rows + columns - 1)]
    return padded.unflatten(1, (rows, -1)).sum(1)
