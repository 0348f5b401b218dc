"""The two-layer perceptron of the Transformer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.contract import Layout, SequenceModule, StateTree
from lengthwise.errors import InputError, unknown
from lengthwise.ops.initial import begin_normal
from lengthwise.ops.squared_relu import squared_relu


def sigmoid_gelu(x: Tensor) -> Tensor:
    """x σ(1.702 x), Hendrycks and Gimpel's approximation of the Gaussian error linear unit."""
    return functional.silu(1.702 * x) / 1.702


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "sigmoid_gelu": sigmoid_gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "squared_relu": squared_relu,
}
"""Activations by name. "gelu" is the exact one, with the error function."""


class MLP(SequenceModule):
    """Two linear maps with an activation between them, on each token alone.

        y = W_2 act(W_1 x + b_1) + b_2          W_1: [hidden, dim], W_2: [dim, hidden]

    hidden: 4 dim unless given. activation: "gelu", "sigmoid_gelu", "relu", "silu" or "squared_relu". bias: whether
    there are b_1 and b_2. depth: the number of residual branches of the model. W_1 begins as N(0, 0.02), W_2 as
    N(0, 0.02 / sqrt(depth)), as in GPT-2, and the biases as 0.

    Vaswani et al. 2017, arXiv 1706.03762.
    """

    receptive_field = 1
    inherits: ClassVar[tuple[str, ...]] = ("depth",)

    def __init__(
        self, dim: int, *, hidden: int | None = None, activation: str = "gelu", bias: bool = True, depth: int = 1
    ) -> None:
        super().__init__()
        hidden = 4 * dim if hidden is None else hidden
        if hidden < 1:
            raise InputError(f"hidden must be at least 1, got {hidden}")
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.activation = activation
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)
        begin_normal(self.up)
        begin_normal(self.down, std=0.02 / math.sqrt(depth))

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,  # noqa: ARG002 - a token alone leaves nothing to keep
        layout: Layout | None = None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """The output of each token; there is no state."""
        return self.down(ACTIVATIONS[self.activation](self.up(x))), None

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """Nothing is kept."""
        return 0
