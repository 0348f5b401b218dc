"""Truncated back-propagation: long rows trained in pieces, each of which frees its graph before the next is read.

    loss of a row = Σ_p w_p loss(piece p, from stop(state after piece p − 1))          Σ_p w_p = 1

Werbos 1990. A step needs memory for one piece, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lengthwise.contract import Layout, StateTree, map_state
from lengthwise.errors import InputError
from lengthwise.training.fit import Loss, next_token_loss

Divide = Callable[[Any, int], Iterable[tuple[Any, float]]]
"""The pieces of a batch with so many tokens each, and their shares of the loss; with a share of 0 a piece is read
without a loss."""


class GoingOn(nn.Module):
    """A model whose every call goes on from the state after the one before. It starts from `state`."""

    def __init__(self, model: nn.Module, state: StateTree = None) -> None:
        super().__init__()
        self.model, self.state = model, state

    def forward(self, tokens: Tensor, state: StateTree = None, layout: Layout | None = None) -> tuple[Any, StateTree]:
        """What the model gives. Raises InputError where it is given a state."""
        if state is not None:
            raise InputError("this model goes on from its own last state; call the model inside it with another one")
        y, self.state = self.model(tokens, self.state, layout)
        return y, self.state


def rows_in_pieces(rows: Int[Tensor, "batch tokens"], tokens: int) -> Iterator[tuple[Tensor, float]]:
    """Rows of L + 1 tokens, of which L are predicted, as `next_token_loss` takes them: pieces that predict `tokens`
    each, the last one what is left."""
    length = rows.shape[1] - 1
    for begin in range(0, length, tokens):
        end = min(begin + tokens, length)
        yield rows[:, begin : end + 1], (end - begin) / length


def truncated(loss: Loss = next_token_loss, *, tokens: int, divide: Divide = rows_in_pieces) -> Loss:
    """A loss for `fit` through which gradients reach back over `tokens` tokens at most, to the beginning of a piece.

        fit(model, batches, loss=truncated(tokens=4 * 512), ...)

    Any causal model can be trained with it, since all go on from a state. Where the model itself ends gradients at
    the pieces' borders, as `recurrent_memory(…, segment=512, backprop=4)` does in the example, the gradient is that of
    the whole row.

    loss: of a model on a piece, the mean over what it asks. divide: how a batch is cut.

    With gradients, the loss that it gives has back-propagated all pieces but the last into the parameters' `grad`, and
    its own `backward` does the last: call it once for a step, on the loss as it is. Raises InputError for less than 1
    token and for batches without a piece.
    """
    if tokens < 1:
        raise InputError(f"a piece must have at least 1 token, got {tokens}")

    def in_pieces(model: nn.Module, batch: Any) -> Tensor:
        going_on = GoingOn(model)
        going_on.training = model.training
        total: Tensor | None = None
        for piece, share in divide(batch, tokens):
            if share and total is not None and total.requires_grad:
                total.backward()
                total = total.detach()
            going_on.state = map_state(Tensor.detach, going_on.state)
            value = share * loss(going_on, piece) if share else unasked(loss, going_on, piece)
            total = value if total is None else total + value
        if total is None:
            raise InputError("a batch without a piece has no loss; rows need two tokens or more")
        return total

    return in_pieces


@torch.no_grad()
def unasked(loss: Loss, model: nn.Module, piece: Any) -> Tensor:
    """0, the model having read a piece of which nothing is asked."""
    return torch.zeros_like(loss(model, piece))
