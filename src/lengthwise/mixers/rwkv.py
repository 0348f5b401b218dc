"""RWKV-4's time mix: an average of the values so far that fades at a rate of each channel's own, behind a gate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.ops.fused import work_dtype
from lengthwise.ops.token_shift import mix, token_shift
from lengthwise.ops.wkv import wkv


@dataclass(frozen=True)
class RWKVState(State):
    """The last input, and the numerator, the denominator and the running maximum of the averages."""

    last: Float[Tensor, "batch dim"]
    averages: Float[Tensor, "batch 3 dim"]


class RWKV(SequenceModule):
    """The time mix of RWKV-4.

        x^a_t = μ_a ⊙ x_t + (1 − μ_a) ⊙ x_{t−1}          a: r, k, v
        r = W_r x^r          k = W_k x^k          v = W_v x^v
        wkv_t = (Σ_{i<t} e^{−(t−1−i) w + k_i} v_i + e^{u + k_t} v_t) / (Σ_{i<t} e^{−(t−1−i) w + k_i} + e^{u + k_t})
        y = W_o (σ(r) ⊙ wkv)

    w = exp(time_decay) and u = time_first are vectors. Its other half is `rwkv_channels`; the model is
    `layernorm + 12*(rwkv + rwkv_channels)` with LayerNorms. layer, layers: which of how many it is, which sets where it
    begins: w spread over the channels, further apart in deeper layers; the present token's share μ growing over the
    channels, and nearer to 1 in deeper layers; W_v orthogonal; W_r, W_k and W_o zero, so that the branch begins silent.
    None of the vectors has weight decay. The average is computed in float32.

    State: 4 dim numbers, whatever the length; with the channel mix's, 5. The parameters have the names of
    `RwkvSelfAttention` in transformers.
    Peng et al. 2023, arXiv 2305.13048.
    """

    inherits: ClassVar[tuple[str, ...]] = ("layer", "layers")
    viewed: ClassVar[tuple[str, ...]] = ("time_mix_key", "time_mix_value", "time_mix_receptance")

    def __init__(self, dim: int, *, layer: int = 0, layers: int = 1):
        super().__init__()
        self.width = dim
        depth, height = layer / max(layers - 1, 1), 1 - layer / layers
        channel = torch.arange(dim)
        share = (channel / dim) ** height
        self.time_decay = vector(-5 + 8 * (channel / max(dim - 1, 1)) ** (0.7 + 1.3 * depth))
        self.time_first = vector(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1.0))
        self.time_mix_key = vector(share)
        self.time_mix_value = vector(share + 0.3 * depth)
        self.time_mix_receptance = vector((channel / dim) ** (0.5 * height))
        self.key, self.value, self.receptance, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        for silent in (self.key, self.receptance, self.output):
            nn.init.zeros_(silent.weight)
        nn.init.orthogonal_(self.value.weight)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: RWKVState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], RWKVState]:
        """The gated average of every token, and the state after the last one."""
        starts = None if layout is None else layout.starts
        last, averages = (None, None) if state is None else (state.last, state.averages)
        before, last = token_shift(x, last, starts)
        for_key, for_value, for_receptance = self.mixed(before, x)
        k, v, r = self.key(for_key), self.value(for_value), self.receptance(for_receptance)
        y, averages = wkv(k, v, self.rate(x.dtype), self.time_first, averages, starts)
        return self.output(torch.sigmoid(r) * y), RWKVState(last, averages)

    def mixed(
        self, before: Float[Tensor, "batch length dim"], x: Float[Tensor, "batch length dim"]
    ) -> list[Float[Tensor, "batch length dim"]]:
        """x^k, x^v and x^r."""
        return [mix(before, x, s) for s in (self.time_mix_key, self.time_mix_value, self.time_mix_receptance)]

    def rate(self, dtype: torch.dtype) -> Float[Tensor, " dim"]:
        """w, in the precision of the average."""
        return self.time_decay.to(work_dtype(dtype)).exp()

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """16 dim bytes after any number of tokens."""
        return 4 * 4 * self.width


def vector(values: Float[Tensor, "*shape"]) -> nn.Parameter:
    """A parameter without weight decay."""
    parameter = nn.Parameter(values)
    parameter.no_weight_decay = True  # type: ignore[attr-defined]
    return parameter
