"""Mamba: selecting by the token what to keep, against the same network with constant step and maps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.errors import InputError
from lengthwise.mixers.mamba import Mamba
from lengthwise.ops.long_convolution import long_convolution
from lengthwise.systems.selective_copying import build, medians
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds

SYSTEM = System(
    key="mamba",
    title="Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
    arxiv="2312.00752",
    parts=["mixers.mamba", "ops.selective_scan", "ops.short_convolution"],
    claim="a state space layer that selects by the token copies what it must, where a time-invariant one can't",
    expression="24*mamba",
)


class TimeInvariantMamba(Mamba):
    """The Mamba block with a learned constant step and maps of its own in each channel: the S4D-real layer.

        h_t[e,n] = exp(Δ[e] A[e,n]) h_{t-1}[e,n] + Δ[e] B[e,n] x_t[e]          y_t[e] = Σ_n C[e,n] h_t[e,n] + D[e] x_t

    Run as a convolution with k_l[e] = Σ_n C[e,n] Δ[e] B[e,n] exp(l Δ[e] A[e,n]), by the fast Fourier transform.
    Δ begins as in Mamba, B as ones, C as N(0, 1). Gu et al. 2022, arXiv 2206.11893.
    Raises InputError for packed documents.
    """

    def __init__(self, dim: int, *, expansion: float = 2, state_dim: int = 16, kernel: int = 4, depth: int = 1):
        super().__init__(dim, expansion=expansion, state_dim=state_dim, kernel=kernel, depth=depth)
        self.step = nn.Parameter(self.dt_proj.bias.detach().clone())
        del self.x_proj, self.dt_proj
        self.B = nn.Parameter(torch.ones(self.width, state_dim))
        self.C = nn.Parameter(torch.randn(self.width, state_dim))

    def recurrence(
        self,
        x: Float[Tensor, "batch length channels"],
        h: Float[Tensor, "batch channels state"] | None,
        starts: Bool[Tensor, "batch length"] | None,
    ) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels state"]]:
        """y, the state space part without the gate, and the state after the last token."""
        if starts is not None:
            raise InputError("a convolution over the whole row can't keep documents apart; give one document a row")
        length, step = x.shape[1], F.softplus(self.step)[:, None]
        times = torch.arange(length + 1, device=x.device, dtype=step.dtype)[:, None, None]
        decays = torch.exp(times * step * -self.A_log.exp())
        drive = step * self.B
        kernel = torch.einsum("len,en,en->le", decays[:length], drive, self.C)
        y = long_convolution(x, kernel) + self.D * x
        after = torch.einsum("ble,len,en->ben", x, decays[:length].flip(0), drive)
        if h is not None:
            y = y + torch.einsum("len,ben,en->ble", decays[1:], h, self.C)
            after = after + decays[length] * h
        return y, after


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Selective copying by two layers, and the bytes that decoding keeps."""
    layers = {"selective": "2*mamba(state_dim=8)", "time-invariant": "2*time_invariant(state_dim=8)"}
    found = medians(run, layers, parts={"time_invariant": TimeInvariantMamba})
    seeds = of_seeds(run.seeds)
    selective, constant = found["selective"], found["time-invariant"]
    yield at_least(f"selective copying accuracy ({seeds})", selective, 0.90, claimed="99.8 % at length 4096")
    yield at_least(
        f"accuracy above that of the time-invariant layer ({seeds})",
        selective - constant,
        0.25,
        claimed="99.8 % against 56.4 %",
        note=f"time-invariant: {constant:.3f}",
    )
    short, long = (decoding_bytes(tokens) for tokens in (64, 4096))
    yield at_most("bytes kept while decoding after 4096 tokens, over those after 64", long / short, 1.0, claimed="1")


@torch.no_grad()
def decoding_bytes(tokens: int) -> int:
    """Bytes of the state of the experiment's model after so many tokens."""
    _, state = build("2*mamba(state_dim=8)")(torch.zeros(1, tokens, dtype=torch.long))
    return state.nbytes
