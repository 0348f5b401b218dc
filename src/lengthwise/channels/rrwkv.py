"""RRWKV's channel mix: RWKV-4's, which also reads a summary of the intervals that lie behind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lengthwise.channels.rwkv import RWKVChannels
from lengthwise.contract import Layout, State
from lengthwise.errors import InputError
from lengthwise.ops.fused import work_dtype
from lengthwise.ops.intervals import Intervals, find_intervals
from lengthwise.ops.scan import scan
from lengthwise.ops.token_shift import for_rows, token_shift

Sequence = Float[Tensor, "batch length dim"]


@dataclass(frozen=True)
class MediumState(State):
    """The sum of the inputs and the number of tokens of the open interval, and the last medium."""

    sum: Float[Tensor, "batch dim"]
    open: Int[Tensor, " batch"]
    medium: Float[Tensor, "batch dim"]


class Mediums(nn.Module):
    """Summaries of the past, one at the end of every interval of a document.

        m_j = W_m mean_{i in interval j} x_i + ρ ⊙ m_{j−1}          m_{−1} = 0, ρ = σ(keep)

    Interval j holds the tokens j s … (j + 1) s − 1 of its document; tokens after them read m_j, scaled by a vector ν
    for each of `readers`. W_m begins orthogonal, ρ at 1/2, ν at zero.
    Raises InputError for an interval below 1.
    """

    def __init__(self, dim: int, interval: int, readers: int):
        super().__init__()
        if interval < 1:
            raise InputError(f"interval must be at least 1 token, got {interval}")
        self.interval, self.width = interval, dim
        self.squeeze = nn.Linear(dim, dim, bias=False)
        nn.init.orthogonal_(self.squeeze.weight)
        self.keep = nn.Parameter(torch.zeros(dim))
        self.shares = nn.ParameterList(nn.Parameter(torch.zeros(dim)) for _ in range(readers))

    def forward(
        self, x: Sequence, state: MediumState | None = None, starts: Bool[Tensor, "batch length"] | None = None
    ) -> tuple[Float[Tensor, "batch intervals dim"], Sequence, Intervals, MediumState]:
        """m_j of the intervals that end here, the medium that each token reads, where the intervals are, and the
        state."""
        dtype = work_dtype(x.dtype)
        if state is None:
            zeros = x.new_zeros(x.shape[0], x.shape[2], dtype=dtype)
            state = MediumState(zeros, zeros.new_zeros(len(x), dtype=torch.long), zeros)
        found = find_intervals(state.open, x.shape[1], starts, self.interval)
        sums, total = scan(torch.ones_like(x), x.to(dtype), state.sum, found.begins)
        ends = found.ends[..., None].expand(-1, -1, x.shape[2])
        squeezed = self.squeeze((sums.gather(1, ends) / self.interval).to(x.dtype)).to(dtype)
        keep = torch.sigmoid(self.keep.to(dtype)).expand_as(squeezed)
        mediums, _ = scan(keep, squeezed, state.medium, found.first)
        read = found.lookup(state.medium, mediums)
        total = total.masked_fill((found.open == 0)[:, None], 0)
        return mediums, read[:, :-1].to(x.dtype), found, MediumState(total, found.open, read[:, -1].clone())

    def add(self, mixed: list[Sequence], read: Sequence) -> list[Sequence]:
        """What each reader mixed of the tokens, with ν times the medium."""
        return [x + for_rows(share.to(x.dtype), x) * read for x, share in zip(mixed, self.shares, strict=True)]

    def state_nbytes(self) -> int:
        """Two vectors of float32 and a count."""
        return 2 * 4 * self.width + torch.long.itemsize


@dataclass(frozen=True)
class RRWKVChannelsState(State):
    """The last input, and what the mediums go on from."""

    last: Float[Tensor, "batch dim"]
    mediums: MediumState


class RRWKVChannels(RWKVChannels):
    """The channel mix of RRWKV: RWKV-4's token shift also reads the last medium.

        x^a_t = μ_a ⊙ x_t + (1 − μ_a) ⊙ x_{t−1} + ν_a ⊙ m          a: r, k
        y = σ(W_r x^r) ⊙ W_v relu(W_k x^k)²

    m is the medium of the latest interval of `interval` tokens that was finished before t (see `Mediums`), nothing
    before the first. With ν = 0, where it begins, this is `rwkv_channels`. hidden, layer, layers: as there.

    State: 3 dim numbers and a count, whatever the length.
    After Wang 2023, arXiv 2306.05176, withdrawn since; the formulas are this library's. Raises InputError for an
    interval or hidden below 1.
    """

    receptive_field = None

    def __init__(self, dim: int, *, interval: int = 32, hidden: int | None = None, layer: int = 0, layers: int = 1):
        super().__init__(dim, hidden=hidden, layer=layer, layers=layers)
        self.mediums = Mediums(dim, interval, readers=2)

    def forward(  # type: ignore[override]
        self,
        x: Sequence,
        state: RRWKVChannelsState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Sequence, RRWKVChannelsState]:
        """The output for every token, the last token and the last medium."""
        starts = None if layout is None else layout.starts
        before, last = token_shift(x, None if state is None else state.last, starts)
        _, read, _, mediums = self.mediums(x, None if state is None else state.mediums, starts)
        y = self.perceptron(*self.mediums.add(self.mixed(before, x), read))
        return y, RRWKVChannelsState(last, mediums)

    def state_nbytes(self, length: int) -> int:
        """12 dim + 8 bytes after any number of tokens."""
        return super().state_nbytes(length) + self.mediums.state_nbytes()
