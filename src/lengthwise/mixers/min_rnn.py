"""minGRU and minLSTM: gates that depend on the input alone, so that training is one scan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.errors import InputError, unknown
from lengthwise.ops.fused import work_dtype
from lengthwise.ops.scan import log_scan, scan
from lengthwise.ops.short_convolution import short_convolution

BLOCK = 2048
"""Tokens that are run at once where no gradient is wanted, so that what lies between the steps stays in the cache."""


@dataclass(frozen=True)
class MinRNNState(State):
    """The hidden state, and the last inputs of the convolution if there is one."""

    h: Float[Tensor, "batch channels"]
    tail: Float[Tensor, "batch history dim"] | None = None


class MinRNN(SequenceModule):
    """What minGRU and minLSTM share: u = x + conv(x) where wanted, the scan over the gates, the way out.

    A subclass says in `decay_and_input` how the log of the factor of the past and the log of that of the candidate
    depend on u; the two factors add up to 1.

    gates: how many there are. keeps: 1 where a high first gate keeps the past, −1 where it replaces it.
    """

    gates: int
    keeps: int

    def __init__(
        self,
        dim: int,
        *,
        expansion: float = 1,
        kernel: int | None = None,
        forget_bias: float = 0.0,
        form: str = "log",
        bias: bool = True,
    ):
        super().__init__()
        width = int(expansion * dim)
        if width < 1:
            raise InputError(f"expansion * dim must be at least 1, got {width}")
        if kernel is not None and kernel < 1:
            raise InputError(f"kernel must be at least 1, got {kernel}")
        if form not in ("log", "plain"):
            raise unknown("form", form, ("log", "plain"))
        if forget_bias and not bias:
            raise InputError(f"forget_bias={forget_bias} needs linear maps with bias, got bias=False")
        self.width, self.form = width, form
        self.conv1d = None if kernel is None else nn.Conv1d(dim, dim, kernel, groups=dim)
        self.gate = nn.Linear(dim, self.gates * width, bias=bias)
        if bias:
            with torch.no_grad():
                self.gate.bias[:width].add_(self.keeps * forget_bias)
        self.candidate = nn.Linear(dim, width, bias=bias)
        self.out_proj = nn.Linear(width, dim, bias=bias) if width != dim else nn.Identity()

    def decay_and_input(
        self, u: Float[Tensor, "batch length dim"]
    ) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch length channels"]]:
        """Logarithms of the factor of h_{t-1} and of that of the candidate."""
        raise NotImplementedError

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: MinRNNState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], MinRNNState]:
        """h for every token, projected to `dim`, and the state after the last one."""
        if x.shape[1] > BLOCK and not torch.is_grad_enabled():
            return self.by_blocks(x, state, layout)
        starts = None if layout is None else layout.starts
        before, tail = (None, None) if state is None else (state.h, state.tail)
        u = x
        if self.conv1d is not None:
            mixed, tail = short_convolution(x, self.conv1d.weight[:, 0], self.conv1d.bias, tail, starts)
            u = x + mixed
        log_decay, log_input = self.decay_and_input(u)
        candidate = self.candidate(u).to(log_input.dtype)
        if self.form == "log":
            # A state that has underflowed to 0 has no logarithm, nor anything left to say.
            log_before = None if before is None else before.clamp_min(torch.finfo(before.dtype).tiny).log()
            log_h, log_last = log_scan(log_decay, log_input + log_positive(candidate), log_before, starts)
            h, last = log_h.exp(), log_last.exp()
        else:
            h, last = scan(log_decay.exp(), log_input.exp() * candidate, before, starts)
        return self.out_proj(h.to(x.dtype)), MinRNNState(last, tail)

    def by_blocks(
        self, x: Float[Tensor, "batch length dim"], state: MinRNNState | None, layout: Layout | None
    ) -> tuple[Float[Tensor, "batch length dim"], MinRNNState]:
        """What `forward` gives, block by block, each going on from the state after the one before."""
        ys = []
        for begin, block in zip(range(0, x.shape[1], BLOCK), x.split(BLOCK, 1), strict=True):
            y, state = self(block, state, None if layout is None else layout.slice(begin, begin + BLOCK))
            ys.append(y)
        return torch.cat(ys, 1), state  # type: ignore[return-value]

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """4 bytes for each channel, and for each input that the convolution looks back to."""
        history = 0 if self.conv1d is None else self.conv1d.in_channels * (self.conv1d.kernel_size[0] - 1)
        return 4 * (self.width + history)


class MinGRU(MinRNN):
    """Minimal GRU: one gate, which divides between the past and a candidate.

        z_t = σ(W_z u_t)          h̃_t = g(W_h u_t)          h_t = (1 - z_t) ⊙ h_{t-1} + z_t ⊙ h̃_t
        output = W_o h_t          u = x, or x + conv(x)

    form: "log" makes the candidate positive, g(c) = c + 1/2 for c ≥ 0 and σ(c) below, and runs the scan in logarithms;
    "plain" has g(c) = c. The two are different models. expansion: width of h over `dim`; W_o is there unless it is 1.
    kernel: taps of a depthwise causal convolution, none if None. forget_bias: raises 1 - z at the start of training,
    which lengthens memory. bias: whether the linear maps have one.

    State: h, width numbers, and (kernel - 1) dim of the convolution. Feng et al. 2024, arXiv 2410.01201.
    Raises InputError for sizes below 1, an unknown form, or forget_bias without bias.
    """

    gates, keeps = 1, -1

    def decay_and_input(
        self, u: Float[Tensor, "batch length dim"]
    ) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch length channels"]]:
        """log(1 - z) and log z."""
        k = self.gate(u).to(work_dtype(u.dtype))
        return F.logsigmoid(-k), F.logsigmoid(k)


class MinLSTM(MinRNN):
    """Minimal LSTM: a forget gate and an input gate that are made to add up to 1; no cell and no output gate.

        f_t = σ(W_f u_t)     i_t = σ(W_i u_t)     h̃_t = g(W_h u_t)
        h_t = f_t / (f_t + i_t) ⊙ h_{t-1} + i_t / (f_t + i_t) ⊙ h̃_t          output = W_o h_t

    The arguments, the forms of g, the state and the errors are those of `MinGRU`; forget_bias is added to the forget
    gate's. Feng et al. 2024, arXiv 2410.01201.
    """

    gates, keeps = 2, 1

    def decay_and_input(
        self, u: Float[Tensor, "batch length dim"]
    ) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch length channels"]]:
        """log f' and log i', where f' = σ(log f - log i) because the two add up to 1."""
        f, i = self.gate(u).to(work_dtype(u.dtype)).chunk(2, -1)
        difference = F.logsigmoid(f) - F.logsigmoid(i)
        return F.logsigmoid(difference), F.logsigmoid(-difference)


def log_positive(c: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log g(c), where g(c) = c + 1/2 for c ≥ 0 and σ(c) below: positive, continuous, increasing."""
    return torch.where(c >= 0, torch.log(F.relu(c) + 0.5), F.logsigmoid(c))
