"""The gated linear unit of today's language models."""

from __future__ import annotations

import math
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lengthwise.contract import Layout, SequenceModule, StateTree
from lengthwise.errors import InputError
from lengthwise.ops.initial import begin_normal
from lengthwise.ops.linear import Linear
from lengthwise.ops.silu_gate import silu_gate


class SwiGLU(SequenceModule):
    """A linear map gated by another, on each token alone.

        y = W_3 (silu(W_1 x) ⊙ W_2 x)          W_1, W_2: [hidden, dim], W_3: [dim, hidden]

    hidden: unless given, 8/3 dim rounded to the nearest multiple of 8, which has as many weights as an MLP of 4 dim.
    bias: whether the three maps have one. depth: the number of residual branches of the model. W_1 and W_2 begin as
    N(0, 0.02), W_3 as N(0, 0.02 / sqrt(depth)), biases as 0.

    Shazeer 2020, arXiv 2002.05202.
    """

    receptive_field = 1
    inherits: ClassVar[tuple[str, ...]] = ("depth",)

    def __init__(self, dim: int, *, hidden: int | None = None, bias: bool = False, depth: int = 1) -> None:
        super().__init__()
        hidden = max(8, 8 * round(dim / 3)) if hidden is None else hidden
        if hidden < 1:
            raise InputError(f"hidden must be at least 1, got {hidden}")
        self.gate_up = Linear(dim, 2 * hidden, bias=bias)
        self.down = Linear(hidden, dim, bias=bias)
        begin_normal(self.gate_up)
        begin_normal(self.down, std=0.02 / math.sqrt(depth))

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,  # noqa: ARG002 - a token alone leaves nothing to keep
        layout: Layout | None = None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """The output of each token; there is no state."""
        return self.down(self.gated(self.gate_up(x))), None

    def gated(self, both: Float[Tensor, "batch length both"]) -> Float[Tensor, "batch length hidden"]:
        """silu(W_1 x) ⊙ W_2 x."""
        return silu_gate(both)

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """Nothing is kept."""
        return 0
