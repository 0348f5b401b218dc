"""S5: one state space for all channels together, diagonal in complex numbers and run as a scan with resets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.errors import InputError
from lengthwise.mixers.hippo import legs_normal_part
from lengthwise.ops.fused import work_dtype
from lengthwise.ops.scan import scan

STEPS = (1e-3, 1e-1)
"""Between which the steps Δ begin."""

TRUNCATED = 0.87962566103423978
"""Standard deviation of a standard normal that is cut off at 2 on both sides."""


@dataclass(frozen=True)
class S5State(State):
    """Real and imaginary part of the state after the last token."""

    s: Float[Tensor, "batch states 2"]


class S5(SequenceModule):
    """A state space that every channel writes to and reads from, and a gated map of what it reads.

        s_t = (1 − d_t) Λ̄ ⊙ s_{t−1} + B̄ u_t          y_t = 2 Re(C s_t) + D ⊙ u_t
        Λ̄ = exp(Λ Δ)          B̄ = Λ^{-1} (Λ̄ − 1) B          zero-order hold, with one Δ > 0 for each state
        output = W_1 g(y) ⊙ σ(W_2 g(y))          g: GELU in its tanh form; W_1, W_2 with bias

    Λ, s: P complex numbers; B: [P, dim] and C: [dim, P], complex. They stand for twice as many, which come in conjugate
    pairs: half is kept, hence the 2. d_t is 1 where a document begins and 0 elsewhere.

    Rollouts of an environment: d_t = 1 at the first observation of an episode, the one after the last of the episode
    before. Many episodes in a row, of which the first may go on from the state that the rollout before ended with, are
    `Layout.begun(d)`, whose `starts` are d. Where the steps since the episode began are known, they are the positions:
    `Layout(steps, d.cumsum(1))`. `Layout.numbered` begins every row anew, so it is for rollouts that begin with an
    episode.

    state_dim: 2 P; `dim`, rounded up to an even number, if None. largest_real: the real part of Λ counts as at most
    this, such as −1e-4; None leaves it as it is learnt, and then a state may grow without end where it becomes
    positive.

    Λ and V begin as the half of the normal part of HiPPO-LegS, of size 2 P, with negative imaginary parts; B as
    V^H B_0 and C as C_0 V, where the numbers of B_0 [2P, dim] are real and of variance 1 / 2P and those of C_0
    [dim, 2P] have real and imaginary parts of variance 1 / (2P dim), all of them normal and cut off at two standard
    deviations; D as N(0, 1); Δ between 0.001 and 0.1, evenly in its logarithm; W_1 and W_2 like B_0, with variance
    1 / dim, and biases of 0. Λ, B, D and Δ have no weight decay. Λ̄, the recurrence and the state stay out of half
    precision.

    State: s, P complex numbers, whatever the length. Smith et al. 2022, arXiv 2208.04933; resets and the layer, Lu et
    al. 2023, arXiv 2303.03982. Raises InputError for a state_dim that isn't even or below 2.
    """

    def __init__(self, dim: int, *, state_dim: int | None = None, largest_real: float | None = None) -> None:
        super().__init__()
        state_dim = dim + dim % 2 if state_dim is None else state_dim
        if state_dim < 2 or state_dim % 2:
            raise InputError(f"state_dim must be even and at least 2, got {state_dim}")
        self.states, self.largest_real = state_dim // 2, largest_real
        eigenvalues, V = legs_normal_part(state_dim)
        eigenvalues, V = eigenvalues[: self.states], V[:, : self.states]
        B = V.mH @ _truncated_normal(state_dim, dim, variance=1 / state_dim).to(V.dtype)
        C = torch.view_as_complex(_truncated_normal(dim, state_dim, 2, variance=1 / (state_dim * dim))) @ V
        low, high = map(math.log, STEPS)
        self.Lambda_re = nn.Parameter(eigenvalues.real.float())
        self.Lambda_im = nn.Parameter(eigenvalues.imag.float())
        self.B = nn.Parameter(torch.view_as_real(B).float())
        self.C = nn.Parameter(torch.view_as_real(C).float())
        self.D = nn.Parameter(torch.randn(dim))
        self.log_step = nn.Parameter(torch.empty(self.states).uniform_(low, high))
        self.out_proj = nn.Linear(dim, 2 * dim)
        with torch.no_grad():
            self.out_proj.weight.copy_(_truncated_normal(2 * dim, dim, variance=1 / dim))
            self.out_proj.bias.zero_()
        for undecayed in (self.Lambda_re, self.Lambda_im, self.B, self.D, self.log_step):
            undecayed.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: S5State | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], S5State]:
        """The layer's output for every token, and the state after the last one."""
        before = None if state is None else torch.view_as_complex(state.s.to(work_dtype(x.dtype)))
        y, s = self.recurrence(x, before, None if layout is None else layout.starts)
        return F.glu(self.out_proj(F.gelu(y, approximate="tanh"))), S5State(torch.view_as_real(s))

    def recurrence(
        self,
        u: Float[Tensor, "batch length dim"],
        s: Complex[Tensor, "batch states"] | None = None,
        starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Complex[Tensor, "batch states"]]:
        """y, the state space alone, and the state after the last token."""
        decay, B = self.discretised(work_dtype(u.dtype))
        # A complex number times a real one is two real numbers times it, so both maps are plain matrix products.
        inputs = F.linear(u, torch.view_as_real(B).mT.flatten(0, 1).to(u.dtype))
        b = torch.view_as_complex(inputs.to(decay.real.dtype).unflatten(-1, (self.states, 2)))
        s_all, last = scan(decay, b, s, starts)
        read = 2 * self.C * self.C.new_tensor([1, -1])  # Re(C s) = Re C Re s − Im C Im s
        y = F.linear(torch.view_as_real(s_all).flatten(-2).to(u.dtype), read.flatten(1).to(u.dtype))
        return y + self.D.to(u.dtype) * u, last

    def discretised(self, dtype: torch.dtype) -> tuple[Complex[Tensor, " states"], Complex[Tensor, "states dim"]]:
        """Λ̄ and B̄, of parts in `dtype`."""
        real, imaginary, B, log_step = (p.to(dtype) for p in (self.Lambda_re, self.Lambda_im, self.B, self.log_step))
        if self.largest_real is not None:
            real = real.clamp_max(self.largest_real)
        step = log_step.exp()
        z = torch.complex(real * step, imaginary * step)
        return z.exp(), (step * exponential_quotient(z))[:, None] * torch.view_as_complex(B.contiguous())

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """8 P bytes after any number of tokens."""
        return 8 * self.states


def exponential_quotient(z: Complex[Tensor, "*shape"]) -> Complex[Tensor, "*shape"]:
    """(exp(z) − 1) / z, which is 1 at 0, with every digit near 0 as well."""
    small = z.abs() < torch.finfo(z.dtype).eps ** (1 / 3)  # where what the series below leaves out is lost in rounding
    divisor = torch.where(small, 1, z)
    return torch.where(small, 1 + z * (0.5 + z / 6), torch.expm1(divisor) / divisor)


def _truncated_normal(*shape: int, variance: float) -> Tensor:
    """Normal numbers of the given variance that lie within two standard deviations, in float64."""
    std = math.sqrt(variance) / TRUNCATED
    return nn.init.trunc_normal_(torch.empty(shape, dtype=torch.float64), std=std, a=-2 * std, b=2 * std)
