"""Falcon Mamba: Mamba whose step and maps are normed, so that large models train without spikes of the loss."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lengthwise.mixers.mamba import Mamba

EPS = 1e-6
"""Added to the mean square."""


class FalconMamba(Mamba):
    """The Mamba block with δ, B and C divided by the root of their mean squares.

        [δ, B, C] = W_x x          δ ← δ / √(mean(δ²) + 1e-6), and so B and C; without weights

    All else, the arguments, the state and the errors are those of `Mamba`. The parameters have the names and shapes of
    `FalconMambaMixer` in transformers. Zuo et al. 2024, arXiv 2410.05355.
    """

    def selection(
        self, x: Float[Tensor, "batch length channels"]
    ) -> tuple[
        Float[Tensor, "batch length rank"], Float[Tensor, "batch length state"], Float[Tensor, "batch length state"]
    ]:
        """δ, B and C of every token, normed."""
        low, B, C = (F.rms_norm(part, part.shape[-1:], eps=EPS) for part in super().selection(x))
        return low, B, C
