"""RWKV-4's channel mix: a perceptron of the present token and the one before, behind a gate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.errors import InputError
from lengthwise.ops.squared_relu import squared_relu
from lengthwise.ops.token_shift import mix, token_shift


@dataclass(frozen=True)
class RWKVChannelsState(State):
    """The last input."""

    last: Float[Tensor, "batch dim"]


class RWKVChannels(SequenceModule):
    """The channel mix of RWKV-4.

        x^a_t = μ_a ⊙ x_t + (1 − μ_a) ⊙ x_{t−1}          a: r, k
        y = σ(W_r x^r) ⊙ W_v relu(W_k x^k)²               W_k: [hidden, dim], W_v: [dim, hidden]

    hidden: 4 dim unless given. layer, layers: which of how many it is; μ begins as in the time mix. W_k begins
    orthogonal with gain √(hidden / dim), W_v and W_r at zero, so that the branch begins silent.

    State: the last input, dim numbers. The parameters have the names of `RwkvFeedForward` in transformers.
    Peng et al. 2023, arXiv 2305.13048. Raises InputError for hidden below 1.
    """

    receptive_field: int | None = 2
    inherits: ClassVar[tuple[str, ...]] = ("layer", "layers")
    viewed: ClassVar[tuple[str, ...]] = ("time_mix_key", "time_mix_receptance")

    def __init__(self, dim: int, *, hidden: int | None = None, layer: int = 0, layers: int = 1):
        super().__init__()
        hidden = 4 * dim if hidden is None else hidden
        if hidden < 1:
            raise InputError(f"hidden must be at least 1, got {hidden}")
        self.width = dim
        share = (torch.arange(dim) / dim) ** (1 - layer / layers)
        self.time_mix_key, self.time_mix_receptance = nn.Parameter(share), nn.Parameter(share.clone())
        for undecayed in (self.time_mix_key, self.time_mix_receptance):
            undecayed.no_weight_decay = True  # type: ignore[attr-defined]
        self.key = nn.Linear(dim, hidden, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(hidden, dim, bias=False)
        nn.init.orthogonal_(self.key.weight, gain=math.sqrt(max(hidden / dim, 1)))
        nn.init.zeros_(self.receptance.weight)
        nn.init.zeros_(self.value.weight)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: RWKVChannelsState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], RWKVChannelsState]:
        """The output for every token, and the last token."""
        starts = None if layout is None else layout.starts
        before, last = token_shift(x, None if state is None else state.last, starts)
        return self.perceptron(*self.mixed(before, x)), RWKVChannelsState(last)

    def mixed(
        self, before: Float[Tensor, "batch length dim"], x: Float[Tensor, "batch length dim"]
    ) -> list[Float[Tensor, "batch length dim"]]:
        """x^k and x^r."""
        return [mix(before, x, share) for share in (self.time_mix_key, self.time_mix_receptance)]

    def perceptron(
        self, for_key: Float[Tensor, "batch length dim"], for_receptance: Float[Tensor, "batch length dim"]
    ) -> Float[Tensor, "batch length dim"]:
        """y of x^k and x^r."""
        return torch.sigmoid(self.receptance(for_receptance)) * self.value(squared_relu(self.key(for_key)))

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """4 dim bytes after any number of tokens."""
        return 4 * self.width
