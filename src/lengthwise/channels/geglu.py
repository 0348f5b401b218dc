"""The gated linear unit of T5 1.1 and Gemma."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lengthwise.channels.swiglu import SwiGLU


class GeGLU(SwiGLU):
    """A linear map gated by another through a Gaussian error linear unit, on each token alone.

        y = W_3 (gelu(W_1 x) ⊙ W_2 x)          gelu(z) = z/2 (1 + tanh(√(2/π) (z + 0.044715 z³)))

    The approximation with tanh is what the published models were trained with. Arguments and initial values as
    SwiGLU's. Shazeer 2020, arXiv 2002.05202.
    """

    def gated(self, both: Float[Tensor, "batch length both"]) -> Float[Tensor, "batch length hidden"]:
        """gelu(W_1 x) ⊙ W_2 x."""
        gate, up = both.chunk(2, dim=-1)
        return functional.gelu(gate, approximate="tanh") * up
