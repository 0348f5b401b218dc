"""Hyena: gates and long convolutions in turn, whose filters a small network makes from the position."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.caches.history import History
from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.errors import InputError
from lengthwise.ops.fused import work_dtype
from lengthwise.ops.initial import begin_normal
from lengthwise.ops.long_convolution import long_convolution
from lengthwise.ops.short_convolution import short_convolution

KERNEL = 3
"""Taps of the short convolution."""

TARGET, SLOWEST, FASTEST = 1e-2, 1.5, 0.3
"""What the window falls to, and at which shares of the longest length in the slowest and the fastest channel."""


class ImplicitFilter(nn.Module):
    """Filters as long as wanted, made by a small network with sine activations from the position, under a window.

        z_t = [τ, cos(f_j w_t), −sin(f_j w_t)]      τ = t / (M − 1), w_t = 2π t / M, f_1 … f_b from 10⁻⁴ to b − 1
        h_t = (W_4 s(W_3 s(W_2 s(W_1 z_t)))) ⊙ (exp(−τ |δ|) + shift)         s(u) = sin(a ⊙ u)

    M: `max_length`, which with t, and not the length of an input, fixes every tap. z: `emb_dim` = 2b + 1 numbers.
    a: one vector for all sines, which begins as `frequency`: the larger, the less smooth the filters begin.
    δ: fixed, evenly from ln(0.01) / 1.5 to ln(0.01) / 0.3 over the channels, so that the window of the first falls to a
    hundredth at 1.5 M, that of the last at 0.3 M.

    W begin as N(0, 0.02), biases as 0. No parameter has weight decay. Computed in float32 or wider.
    """

    def __init__(
        self, channels: int, max_length: int, *, emb_dim: int, hidden: int, frequency: float, shift: float
    ) -> None:
        super().__init__()
        self.channels, self.max_length, self.bands, self.shift = channels, max_length, (emb_dim - 1) // 2, shift
        widths = [emb_dim, hidden, hidden, hidden, channels]
        layers = [nn.Linear(*pair) for pair in pairwise(widths)]
        layers[-1].register_parameter("bias", None)
        self.layers = nn.ModuleList(layers)
        self.frequency = nn.Parameter(torch.full((hidden,), float(frequency)))
        begin_normal(*layers)
        for parameter in self.parameters():
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, taps: int) -> Float[Tensor, "taps channels"]:
        """The first taps of the filters."""
        dtype = work_dtype(self.frequency.dtype)
        with torch.autocast(self.frequency.device.type, enabled=False):
            x = self.features(taps).to(dtype)
            for number, layer in enumerate(cast(Iterable[nn.Linear], self.layers)):
                if number:
                    x = torch.sin(self.frequency.to(dtype) * x)
                x = F.linear(x, layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype))
            return x * self.window(taps, dtype)

    def features(self, taps: int) -> Float[Tensor, "taps features"]:
        """z, in float64."""
        step = self._steps(taps)
        bands = torch.linspace(1e-4, self.bands - 1, self.bands, dtype=step.dtype, device=step.device)
        angle = 2 * math.pi * step / self.max_length * bands
        return torch.cat([self._share(step), angle.cos(), -angle.sin()], 1)

    def window(self, taps: int, dtype: torch.dtype = torch.float64) -> Float[Tensor, "taps channels"]:
        """exp(−τ |δ|) + shift."""
        step, slowest, fastest = self._steps(taps), -math.log(TARGET) / SLOWEST, -math.log(TARGET) / FASTEST
        decay = torch.linspace(slowest, fastest, self.channels, dtype=step.dtype, device=step.device)
        return torch.exp(-self._share(step).to(dtype) * decay.to(dtype)) + self.shift

    def _steps(self, taps: int) -> Tensor:
        return torch.arange(taps, dtype=torch.float64, device=next(self.parameters()).device)[:, None]

    def _share(self, step: Tensor) -> Tensor:
        return step / max(self.max_length - 1, 1)


@dataclass(frozen=True)
class HyenaState(State):
    """The last inputs of the short convolution, and all inputs of each long one."""

    tail: Float[Tensor, "batch history channels"]
    histories: tuple[History, ...]


class Hyena(SequenceModule):
    """The Hyena operator of order n: a value that is gated and convolved in turn, in place of attention.

        [x_0, …, x_{n−1}, v] = conv(W_in u + b)              depthwise, causal, 3 taps, with bias
        v ← v ⊙ x_i,   v ← h^i ∗ v + β^i ⊙ v                 for i = n − 1 down to 1
        output = W_out (v ⊙ x_0) + b

    h^i ∗ v is the causal convolution of each channel with a filter as long as the input, from `ImplicitFilter`; of the
    (n − 1) dim channels of that, number c (n − 1) + o filters channel c in the convolution with x_{n−1−o}.

    order: n, at least 2. max_length: the longest document, for which the filters are made. emb_dim: features of a
    position, odd. filter_order: width of the filters' network. w: the frequency at which its sines begin. shift: what
    the filters' window never falls below. depth: the number of residual branches of the model.
    W_in begins as N(0, 0.02), W_out as N(0, 0.02 / √depth), β as N(0, 1), biases as 0. The filters' parameters have no
    weight decay.

    State: the inputs of every long convolution, (n − 1) L dim numbers, and 2 (n + 1) dim of the short one. Decoding a
    token reads all of them. Without gradients the filters are kept until a parameter of theirs changes.
    Poli et al. 2023, arXiv 2302.10866. Raises InputError for impossible sizes, and for documents beyond max_length.
    """

    growth = "linear"
    inherits: ClassVar[tuple[str, ...]] = ("depth",)
    filter_type: ClassVar[type[ImplicitFilter]] = ImplicitFilter

    def __init__(
        self,
        dim: int,
        *,
        order: int = 2,
        max_length: int = 8192,
        emb_dim: int = 33,
        filter_order: int = 64,
        w: float = 14.0,
        shift: float = 0.0,
        depth: int = 1,
    ) -> None:
        super().__init__()
        least = {"order": (order, 2), "max_length": (max_length, 1), "filter_order": (filter_order, 1)}
        for name, (size, smallest) in least.items():
            if size < smallest:
                raise InputError(f"{name} must be at least {smallest}, got {size}")
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise InputError(f"emb_dim must be odd and at least 3, got {emb_dim}")
        self.dim, self.order, self.max_length = dim, order, max_length
        self.in_proj = nn.Linear(dim, (order + 1) * dim)
        self.conv1d = nn.Conv1d((order + 1) * dim, (order + 1) * dim, KERNEL, groups=(order + 1) * dim)
        self.filter = self.filter_type(
            (order - 1) * dim, max_length, emb_dim=emb_dim, hidden=filter_order, frequency=w, shift=shift
        )
        self.beta = nn.Parameter(torch.randn((order - 1) * dim))
        self.out_proj = nn.Linear(dim, dim)
        begin_normal(self.in_proj)
        begin_normal(self.out_proj, std=0.02 / math.sqrt(depth))
        self._made_from: list[Tensor] = []
        self._made: dict[int, Tensor] = {}

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: HyenaState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], HyenaState]:
        """Every token's output, and the state after the last one."""
        starts = None if layout is None else layout.starts
        tail = None if state is None else state.tail
        taps = self._longest(x.shape[1], state, layout)
        projected, tail = short_convolution(self.in_proj(x), self.conv1d.weight[:, 0], self.conv1d.bias, tail, starts)
        *gates, v = projected.chunk(self.order + 1, -1)
        filters, beta = (
            t.unflatten(-1, (self.dim, self.order - 1)).unbind(-1) for t in (self.filters(taps), self.beta)
        )
        histories = []
        for o in range(self.order - 1):
            v = self.gate(v, gates[-1 - o])
            before = History.empty(v) if state is None else state.histories[o]
            joined, after = before.extend(v, starts)
            v = (
                long_convolution(joined, filters[o], starts, before.inputs.shape[1]).to(v.dtype)
                + beta[o].to(v.dtype) * v
            )
            histories.append(after)
        return self.out_proj(self.gate(v, gates[0])), HyenaState(tail, tuple(histories))

    def gate(
        self, v: Float[Tensor, "batch length dim"], x: Float[Tensor, "batch length dim"]
    ) -> Float[Tensor, "batch length dim"]:
        """The value gated by one of the projections."""
        return v * x

    def filters(self, taps: int) -> Float[Tensor, "taps channels"]:
        """h, of all convolutions. Without gradients they are made once, for a power of two of taps."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.filter(taps)
        now = list(self.filter.parameters())
        if not _equal(now, self._made_from):
            # Compared by value, since what writes into `parameter.data` leaves no other trace.
            self._made_from, self._made = [p.clone() for p in now], {}
        size = min(self.max_length, 1 << max(taps - 1, 0).bit_length())
        if size not in self._made:
            self._made[size] = self.filter(size)
        return self._made[size][:taps]

    def forget_filters(self) -> None:
        """Let go of the filters that were kept."""
        self._made_from, self._made = [], {}

    def _longest(self, length: int, state: HyenaState | None, layout: Layout | None) -> int:
        """Tokens of the longest document up to the end of this call."""
        longest = length + (0 if state is None else state.histories[0].inputs.shape[1])
        if torch.compiler.is_compiling():
            return min(longest, self.max_length)
        if layout is not None and length:
            longest = min(longest, int(layout.positions.max()) + 1)
        if longest > self.max_length:
            raise InputError(
                f"the filters are made for documents of up to max_length={self.max_length} tokens, got {longest};"
                " build the mixer with a larger max_length"
            )
        return longest

    def state_nbytes(self, length: int) -> int:
        """(n − 1) dim numbers for each token, and the tail of the short convolution in float32."""
        each = self.in_proj.weight.element_size()
        return self.dim * ((self.order - 1) * length * each + (self.order + 1) * (KERNEL - 1) * max(4, each))


def _equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(
        p.dtype == q.dtype and p.device == q.device and torch.equal(p, q) for p, q in zip(a, b, strict=True)
    )
