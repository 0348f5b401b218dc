"""Norm over time: each group of channels is normed by all that it has seen of the document."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.errors import InputError
from lengthwise.ops.fused import work_dtype
from lengthwise.ops.timestep_norm import timestep_norm


@dataclass(frozen=True)
class TimestepNormState(State):
    """The steps counted, and mean and variance of each group over them."""

    count: Int[Tensor, " batch"]
    mean: Float[Tensor, "batch groups"]
    variance: Float[Tensor, "batch groups"]


class TimestepNorm(SequenceModule):
    """The causal norm of Megalodon, in place of what it is given.

        y_t = (x_t − μ_t) / √(σ²_t + eps) ⊙ (1 + w) + b

    μ_t and σ²_t: mean and variance of all that a group of channels has seen of the document, the present step included;
    see `lengthwise.ops.timestep_norm`. w and b begin at zero. Padding gives 0.

    groups: of channels in a row; unless given, of a width near 32. prior: steps of mean 0 and variance 1 that count
    before the first; 0, or 2 where each channel is its own group, whose first variance is 0 without them.

    State: 2 groups numbers and a count, whatever the length.
    Ma et al. 2024, arXiv 2404.08801. Raises InputError for groups that don't divide the width, and a prior too small.
    """

    residual = prenorm = False
    normed = True

    def __init__(self, dim: int, *, groups: int | None = None, prior: int | None = None, eps: float = 1e-5):
        super().__init__()
        self.groups = default_groups(dim) if groups is None else groups
        if self.groups < 1 or dim % self.groups:
            would = default_groups(dim)
            raise InputError(f"groups must divide dim: got groups={groups} and dim={dim}; {would} would do")
        least = 2 if self.groups == dim else 0
        self.prior, self.eps = least if prior is None else prior, eps
        if self.prior < least:
            why = "where each channel is a group, whose first variance is 0, " if least else ""
            raise InputError(f"{why}prior must be at least {least}, got {prior}")
        self.weight, self.bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: TimestepNormState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], TimestepNormState]:
        """The normed tokens, and the statistics after the last one."""
        before = None if state is None else (state.count, state.mean, state.variance)
        gain = 1 + self.weight.to(work_dtype(x.dtype))
        masks = (None, None) if layout is None else (layout.starts, layout.padding)
        y, after = timestep_norm(x, gain, self.bias, before, *masks, groups=self.groups, prior=self.prior, eps=self.eps)
        return y, TimestepNormState(*after)

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """8 groups + 8 bytes after any number of tokens."""
        return 2 * 4 * self.groups + torch.long.itemsize

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"{self.weight.shape[0]}, groups={self.groups}, prior={self.prior}, eps={self.eps}"


def default_groups(dim: int, width: int = 32) -> int:
    """The number of groups that divides `dim` into groups nearest to `width`."""
    return min((n for n in range(1, dim + 1) if dim % n == 0), key=lambda groups: abs(dim // groups - width))
