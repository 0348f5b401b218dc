"""RRWKV's time mix: RWKV-4's, which also averages over summaries of the intervals that lie behind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.channels.rrwkv import Mediums, MediumState
from lengthwise.contract import Layout, State
from lengthwise.mixers.rwkv import RWKV, vector
from lengthwise.ops.fused import work_dtype
from lengthwise.ops.intervals import Intervals
from lengthwise.ops.token_shift import token_shift
from lengthwise.ops.wkv import EMPTY, Averages, empty_state, wkv_with_weights

Sequence = Float[Tensor, "batch length dim"]


@dataclass(frozen=True)
class RRWKVState(State):
    """The last input, the averages of the tokens, what the mediums go on from, and the averages of the mediums.

    The latter are kept with a denominator of 1, or 0 where there was no medium.
    """

    last: Float[Tensor, "batch dim"]
    averages: Averages
    mediums: MediumState
    medium_averages: Averages


class RRWKV(RWKV):
    """The time mix of RRWKV: RWKV-4's, where tokens also read mediums m_j, summaries of intervals of their past.

        x^a_t = μ_a ⊙ x_t + (1 − μ_a) ⊙ x_{t−1} + ν_a ⊙ m_{J−1}          a: r, k, v
        r = W_r x^r          k = W_k x^k          v = W_v x^v          κ_j = W_k m_j + c          φ_j = W_v m_j
        N_t = Σ_{i<t} e^{−(t−1−i) w + k_i} v_i + e^{u + k_t} v_t + Σ_{j<J} e^{−(J−1−j) w′ + κ_j} φ_j
        D_t = the same without v and φ          y = W_o (σ(r) ⊙ N / D)

    J(t) is the number of intervals of `interval` tokens of the document that were finished before t, so that the path
    from a token to one far behind is as many times shorter. w′ = exp(medium_decay), c = medium_bonus; m_j as in
    `Mediums`. Both averages run for themselves and are averaged by their weights, whose logarithms are known, so that
    nothing overflows. ν begins at zero, c at −8 and w′ as w, so that it begins close to `rwkv`, which it is for ν = 0
    and c → −∞. layer, layers: as there. The other half is `rrwkv_channels`.

    State: 9 dim numbers and a count, whatever the length; with the channel mix's, 12 and two.
    After Wang 2023, arXiv 2306.05176, withdrawn since; the formulas are this library's. Raises InputError for an
    interval below 1.
    """

    def __init__(self, dim: int, *, interval: int = 32, layer: int = 0, layers: int = 1):
        super().__init__(dim, layer=layer, layers=layers)
        self.mediums = Mediums(dim, interval, readers=3)
        self.medium_bonus = vector(torch.full((dim,), -8.0))
        self.medium_decay = vector(self.time_decay.detach().clone())

    def forward(  # type: ignore[override]
        self,
        x: Sequence,
        state: RRWKVState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Sequence, RRWKVState]:
        """The gated average of every token, and the state after the last one."""
        starts = None if layout is None else layout.starts
        before, last = token_shift(x, None if state is None else state.last, starts)
        found, read, intervals, mediums = self.mediums(x, None if state is None else state.mediums, starts)
        for_key, for_value, for_receptance = self.mediums.add(self.mixed(before, x), read)
        k, v, r = self.key(for_key), self.value(for_value), self.receptance(for_receptance)
        past = None if state is None else state.averages
        y, weight, averages = wkv_with_weights(k, v, self.rate(x.dtype), self.time_first, past, starts)
        past = empty_state(x, work_dtype(x.dtype)) if state is None else state.medium_averages
        of_mediums, medium_weight, after = self.average(found.to(x.dtype), intervals, past)
        share = torch.sigmoid(medium_weight - weight.to(medium_weight.dtype))
        y = torch.lerp(y, of_mediums.to(y.dtype), share.to(y.dtype))
        return self.output(torch.sigmoid(r) * y), RRWKVState(last, averages, mediums, after)

    def average(
        self, mediums: Float[Tensor, "batch intervals dim"], intervals: Intervals, past: Averages
    ) -> tuple[Sequence, Sequence, Averages]:
        """For each token the average of the mediums before it and the logarithm of its weight, and the state."""
        dtype = past.dtype
        keys, values = self.key(mediums).to(dtype) + self.medium_bonus, self.value(mediums).to(dtype)
        rate = self.medium_decay.to(dtype).exp()
        # With u = w′ the present medium counts as much as if it were past, and all count e^w′ times too much.
        y, weight, _ = wkv_with_weights(keys, values, rate, rate, past, intervals.first)
        y = intervals.lookup(past[:, 0], y)
        weight = intervals.lookup(past[:, 2], weight - rate, EMPTY)
        last = weight[:, -1]
        return y[:, :-1], weight[:, :-1], torch.stack([y[:, -1], (last > EMPTY).to(dtype), last], 1)

    def state_nbytes(self, length: int) -> int:
        """36 dim + 8 bytes after any number of tokens."""
        return super().state_nbytes(length) + self.mediums.state_nbytes() + 4 * 3 * self.width
