"""A small plain mixer that keeps every law, and others that break one each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.ops.patterns import blocks, causal


@dataclass(frozen=True)
class Average(State):
    """h: [batch, dim]."""

    h: Tensor


class MovingAverage(SequenceModule):
    """h_t = a ⊙ h_{t-1} + (1 - a) ⊙ W x_t,  y_t = V h_t + c,  a = σ(d)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.read, self.write = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.decay = nn.Parameter(torch.linspace(0, 2, dim))

    def steps(self, x, h, a, starts):
        h_t, out = h, []
        for t, update in enumerate(((1 - a) * self.read(x).to(h)).unbind(1)):
            h_t = torch.where(starts[:, t, None], 0.0, a * h_t) + update
            out.append(h_t)
        return (torch.stack(out, 1) if out else x.new_zeros(x.shape, dtype=h.dtype)), h_t

    def starts(self, x, layout: Layout | None):
        return layout.starts if layout else torch.zeros(x.shape[:2], dtype=torch.bool)

    def forward(self, x, state=None, layout=None):
        kind = torch.promote_types(x.dtype, torch.float32)
        h = x.new_zeros(x.shape[0], self.dim, dtype=kind) if state is None else state.h
        h, last = self.steps(x, h, torch.sigmoid(self.decay).to(kind), self.starts(x, layout))
        return self.write(h.to(x.dtype)), Average(last)

    def state_nbytes(self, length: int) -> int:
        return 4 * self.dim


class TokenAverage(SequenceModule):
    """A model: tokens to logits."""

    def __init__(self, dim: int, vocab_size: int = 11):
        super().__init__()
        self.dim, self.vocab_size = dim, vocab_size
        self.embedding, self.mixer, self.head = (
            nn.Embedding(vocab_size, dim),
            MovingAverage(dim),
            nn.Linear(dim, vocab_size),
        )

    def forward(self, x, state=None, layout=None):
        y, state = self.mixer(self.embedding(x), state, layout)
        return self.head(y), state

    def state_nbytes(self, length: int) -> int:
        return self.mixer.state_nbytes(length)


class DocumentMean(SequenceModule):
    """Not causal: y_t = W (mean of the x of t's document)."""

    causal = False

    def __init__(self, dim: int):
        super().__init__()
        self.write = nn.Linear(dim, dim)

    def same(self, x, layout):
        if layout is None:
            return torch.ones(x.shape[0], x.shape[1], x.shape[1], dtype=torch.bool)
        return (layout.documents[:, :, None] == layout.documents[:, None, :]) & ~layout.padding[:, None, :]

    def forward(self, x, state=None, layout=None):
        same = self.same(x, layout).to(x.dtype)
        return self.write(same @ x / same.sum(-1, keepdim=True).clamp_min(1)), None


class LeaksTheFuture(MovingAverage):
    """Sees the next token."""

    def forward(self, x, state=None, layout=None):
        y, state = super().forward(x, state, layout)
        return y + 0.01 * torch.cat([x[:, 1:], x[:, :1] * 0], dim=1), state


class ForgetsTheState(MovingAverage):
    """Begins anew at every call."""

    def forward(self, x, state=None, layout=None):
        return super().forward(x, None, layout)


class ForgetsForManyTokens(MovingAverage):
    """Uses the state for a single new token only, as some cached models do."""

    def forward(self, x, state=None, layout=None):
        return super().forward(x, state if x.shape[1] == 1 else None, layout)


class MixesDocuments(MovingAverage):
    """Doesn't look at where documents start."""

    def starts(self, x, layout):
        padding = layout.padding if layout else torch.zeros(x.shape[:2], dtype=torch.bool)
        return padding | torch.cat([torch.zeros_like(padding[:, :1]), padding[:, :-1]], dim=1)


class DependsOnTheBatch(MovingAverage):
    """Takes the mean of the batch off."""

    def forward(self, x, state=None, layout=None):
        y, state = super().forward(x, state, layout)
        return y - 0.01 * x.mean(0, keepdim=True), state


class Scaled(torch.autograd.Function):
    """3 x, whose backward says 2."""

    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class WrongGradient(MovingAverage):
    """The backward of one operation is wrong."""

    compiles = False

    def forward(self, x, state=None, layout=None):
        y, state = super().forward(x, state, layout)
        return Scaled.apply(y), state


@dataclass(frozen=True)
class Past(State):
    """h: [batch, dim]; seen: [batch, length, dim]."""

    h: Tensor
    seen: Tensor


class Grows(MovingAverage):
    """Declares a constant state and keeps every token."""

    def forward(self, x, state=None, layout=None):
        y, after = super().forward(x, state, layout)
        return y, Past(after.h, x if state is None else torch.cat([state.seen, x], dim=1))


class MutatesItsState(MovingAverage):
    """Writes the new state over the old one."""

    def forward(self, x, state=None, layout=None):
        y, after = super().forward(x, state, layout)
        if state is not None:
            state.h.data.copy_(after.h.data)
        return y, after


class ReadsPadding(DocumentMean):
    """The mean is over padding too."""

    def same(self, x, layout):
        same = super().same(x, layout)
        return (
            same if layout is None else same | (layout.padding[:, None, :] & (layout.documents[:, :1] == 0)[..., None])
        )


class ReadsPaddingOnTheLeft(MovingAverage):
    """Padding isn't a document of its own: the first token goes on from it."""

    def starts(self, x, layout):
        if layout is None:
            return super().starts(x, layout)
        begins = layout.starts & ~layout.padding
        return begins & ~torch.cat([torch.zeros_like(begins[:, :1]), layout.padding[:, :-1]], dim=1)


class OverflowsOnLargeInputs(MovingAverage):
    """exp without a limit."""

    def forward(self, x, state=None, layout=None):
        y, state = super().forward(x, state, layout)
        return y / (1 + torch.exp(x)) * torch.exp(x), state


class FailsOnNothing(MovingAverage):
    """Takes the last token of what may be empty."""

    def forward(self, x, state=None, layout=None):
        y, state = super().forward(x, state, layout)
        return y + 0 * x[:, -1, None], state


class RoundsItsState(MovingAverage):
    """Keeps the state in the input's precision."""

    def forward(self, x, state=None, layout=None):
        y, state = super().forward(x, state, layout)
        return y, Average(state.h.to(x.dtype))


class LosesAParameter(MovingAverage):
    """A random direction that isn't in the state dict."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.register_buffer("direction", torch.randn(dim), persistent=False)

    def forward(self, x, state=None, layout=None):
        y, state = super().forward(x, state, layout)
        return y + self.direction, state


class SeesFurtherThanDeclared(MovingAverage):
    """Declares a window that a recurrence doesn't have."""

    receptive_field = 3


class LeavesTheGraph(MovingAverage):
    """Looks at numbers in Python."""

    def forward(self, x, state=None, layout=None):
        y, state = super().forward(x, state, layout)
        return (y if float(x.sum()) < 1e9 else -y), state


@dataclass(frozen=True)
class Weighted(State):
    """top, bottom, high: [batch, dim]."""

    top: Tensor
    bottom: Tensor
    high: Tensor


class KeepsTheMaximum(MovingAverage):
    """y_t = Σ e^{k_i} x_i / Σ e^{k_i} below a running maximum of k, which starts leave as it is."""

    def forward(self, x, state=None, layout=None):
        kind = torch.promote_types(x.dtype, torch.float32)
        zero = x.new_zeros(x.shape[0], self.dim, dtype=kind)
        top, bottom, high = (zero, zero, zero - 1e30) if state is None else (state.top, state.bottom, state.high)
        keys, out = self.read(x).to(kind), []
        for t, start in enumerate(self.starts(x, layout).unbind(1)):
            higher = torch.maximum(high, keys[:, t])
            kept, new = torch.where(start[:, None], 0.0, torch.exp(high - higher)), torch.exp(keys[:, t] - higher)
            top, bottom, high = kept * top + new * x[:, t], kept * bottom + new, higher
            out.append(top / bottom)
        y = torch.stack(out, 1) if out else x.new_zeros(x.shape, dtype=kind)
        return self.write(y.to(x.dtype)), Weighted(top, bottom, high)

    def state_nbytes(self, length: int) -> int:
        return 12 * self.dim


class DividesByNothing(DocumentMean):
    """Padding is the mean of no token."""

    def forward(self, x, state=None, layout=None):
        same = self.same(x, layout).to(x.dtype)
        return self.write(same @ x / same.sum(-1, keepdim=True)), None


class SeesMoreThanItsPattern(MovingAverage):
    """Declares a pattern of blocks that a recurrence doesn't have."""

    pattern = causal() & blocks(4)
