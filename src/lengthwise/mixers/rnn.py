"""GRU and LSTM: the recurrences with gates that read the hidden state, as baselines."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.errors import InputError
from lengthwise.ops.fused import work_dtype


@dataclass(frozen=True)
class GRUState(State):
    """The hidden state."""

    h: Float[Tensor, "batch channels"]


@dataclass(frozen=True)
class LSTMState(State):
    """The hidden state and the cell."""

    h: Float[Tensor, "batch channels"]
    c: Float[Tensor, "batch channels"]


class Recurrent(SequenceModule):
    """What GRU and LSTM share: the library's recurrence, run from one start of a document to the next.

    A subclass names the recurrence in `kind` and its state in `state_type`.
    """

    compiles: ClassVar[bool] = False
    kind: ClassVar[type[nn.GRU] | type[nn.LSTM]]
    state_type: ClassVar[type[GRUState] | type[LSTMState]]

    def __init__(self, dim: int, *, expansion: float = 1, bias: bool = True):
        super().__init__()
        self.width = int(expansion * dim)
        if self.width < 1:
            raise InputError(f"expansion * dim must be at least 1, got {self.width}")
        self.recurrence = self.kind(dim, self.width, batch_first=True, bias=bias)
        self.out_proj = nn.Linear(self.width, dim, bias=bias) if self.width != dim else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: GRUState | LSTMState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], GRUState | LSTMState]:
        """h for every token, projected to `dim`, and the state after the last one."""
        precision = next(self.recurrence.parameters()).dtype
        count = 2 if self.kind is nn.LSTM else 1
        if state is None:
            carried = x.new_zeros(count, x.shape[0], self.width, dtype=precision)
        else:
            carried = torch.stack(list(vars(state).values())).to(precision)
        outputs = [x.new_zeros(x.shape[0], 0, self.width)]
        for piece, fresh in _between_starts(x, None if layout is None else layout.starts):
            if fresh is not None:
                carried = carried.masked_fill(fresh[:, None], 0)
            h, after = self.recurrence(piece, carried[:1] if count == 1 else (carried[:1], carried[1:]))
            carried = after if count == 1 else torch.cat(after)
            outputs.append(h)
        last = carried.to(work_dtype(x.dtype)).unbind(0)
        return self.out_proj(torch.cat(outputs, 1)), self.state_type(*last)

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """4 bytes for each channel of the hidden state, and of the cell if there is one."""
        return 4 * self.width * (2 if self.kind is nn.LSTM else 1)


class GRU(Recurrent):
    """Gated recurrent unit, whose gates read the hidden state, so that it can't be trained as a scan.

        r_t = σ(W_r x_t + U_r h_{t-1} + b_r)          z_t = σ(W_z x_t + U_z h_{t-1} + b_z)
        n_t = tanh(W_n x_t + b_n + r_t ⊙ (U_n h_{t-1} + c_n))
        h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_{t-1}          output = W_o h_t

    expansion: width of h over `dim`; W_o is there unless it is 1. bias: whether the maps have one. Initial values are
    PyTorch's. Packed documents run piece by piece, so many of them in a row are slow. State: h.
    Cho et al. 2014, arXiv 1406.1078, in the variant of `torch.nn.GRU`. Raises InputError for a width below 1.
    """

    kind = nn.GRU
    state_type = GRUState


class LSTM(Recurrent):
    """Long short-term memory, whose gates read the hidden state, so that it can't be trained as a scan.

        i_t, f_t, o_t = σ(W x_t + U h_{t-1} + b), each with its own maps     g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)
        c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t          h_t = o_t ⊙ tanh(c_t)          output = W_o h_t

    The arguments, initial values, packing and errors are those of `GRU`. State: h and c.
    Hochreiter and Schmidhuber 1997, with forget gates (Gers et al. 2000), in the variant of `torch.nn.LSTM`.
    """

    kind = nn.LSTM
    state_type = LSTMState


def _between_starts(
    x: Float[Tensor, "batch length dim"], starts: Bool[Tensor, "batch length"] | None
) -> list[tuple[Tensor, Tensor | None]]:
    """Pieces of x in which no document starts after the first token, each with the rows that start there."""
    length = x.shape[1]
    if starts is None:
        return [(x, None)] if length else []
    borders = [0, *(t for t in starts.any(0).nonzero().flatten().tolist() if t > 0), length] if length else []
    sizes = [end - begin for begin, end in pairwise(borders)]
    fresh = [starts[:, begin] for begin in borders[:-1]]
    return list(zip(x.split(sizes, 1), fresh, strict=True)) if length else []
