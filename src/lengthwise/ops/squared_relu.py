"""The squared rectifier, y = max(x, 0)², and its derivative 2 max(x, 0).

So et al. 2021, Primer, arXiv 2109.08668.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


class _SquaredReLU(torch.autograd.Function):
    """Keeps max(x, 0) alone: composed of PyTorch's own, forward and backward pass over memory three more times."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        rectified = functional.relu(x)
        return rectified.square(), rectified

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG004
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor, _: Tensor) -> Tensor:  # type: ignore[override]
        (rectified,) = ctx.saved_tensors
        return torch.mul(d_y, rectified).mul_(2)


def squared_relu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """max(x, 0)². Its gradient can't be differentiated again."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _SquaredReLU.apply(x)[0]
    return functional.relu(x).square_()
