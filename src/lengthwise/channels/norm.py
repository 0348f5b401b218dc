"""Norms as parts of their own, for models that have one between their layers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.contract import Layout, SequenceModule, StateTree


class Norm(SequenceModule):
    """A norm of each token in place of what it is given, eps 1e-5."""

    receptive_field = 1
    residual = prenorm = False
    normed = True

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,  # noqa: ARG002 - a token alone leaves nothing to keep
        layout: Layout | None = None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """The normed tokens; there is no state."""
        return self.norm(x), None

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """Nothing is kept."""
        return 0


class LayerNorm(Norm):
    """y = (x - mean(x)) / √(var(x) + eps) ⊙ w + b. Ba et al. 2016, arXiv 1607.06450."""

    def __init__(self, dim: int):
        super().__init__(nn.LayerNorm(dim, eps=1e-5))


class RMSNorm(Norm):
    """y = x / √(mean(x²) + eps) ⊙ w. Zhang and Sennrich 2019, arXiv 1910.07467."""

    def __init__(self, dim: int):
        super().__init__(nn.RMSNorm(dim, eps=1e-5))
