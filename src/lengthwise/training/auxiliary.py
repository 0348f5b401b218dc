"""What parts add to the loss of training: balance, commitment, sparsity.

A part, or any module inside one, such as what encodes positions, leaves it as its attribute `auxiliary` whenever it
runs in training mode. `fit` and the trainer add the sum:

    loss = loss(model, batch) + Σ_parts auxiliary
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def auxiliary_loss(model: nn.Module) -> Float[Tensor, ""]:
    """The sum of what the parts of a model left in their last forward passes, each of which is taken once; 0 where none
    left anything."""
    total = torch.zeros(())
    for module in model.modules():
        left = getattr(module, "auxiliary", None)
        if isinstance(left, Tensor):
            total = left + total.to(left.device)
            module.auxiliary = None  # type: ignore[assignment]  # it holds the graph of the pass
    return total
