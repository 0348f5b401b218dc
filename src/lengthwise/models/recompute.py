"""Layers whose activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lengthwise.contract import Layout, SequenceModule, StateTree
from lengthwise.models.stack import Stack


class Recompute(Stack):
    """Layers one after the other, of which training keeps the inputs alone.

        forward:   h_r = layer_r(h_{r−1})                       kept: h_0 … h_{N−1}
        backward:  layer_r(h_{r−1}) once more, with the same random numbers, then its gradients

    Training N layers needs memory for N inputs and for the activations of one layer, in place of those of all, and
    about a third more time. Values and gradients stay the same. Buffers, and the attributes that a part names in
    `of_pass`, are those of the first time, whatever passes came between; what parts leave in them or as their
    `auxiliary` they leave once. Chen et al. 2016, arXiv 1604.06174; Child et al. 2019, arXiv 1904.10509. Parameters,
    states and declarations are those of the same layers in a `Stack`.
    """

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """The output of the last layer, and all states."""
        if not torch.is_grad_enabled():
            return super().forward(x, state, layout)
        states = []
        for index, layer in enumerate(self.layers):
            before = None if state is None else state[index]
            x, after = again_in_backward(layer, x, before, layout)  # type: ignore[arg-type]
            states.append(after)
        return x, tuple(states) if self.causal else None


def again_in_backward(
    layer: SequenceModule, x: Tensor, state: StateTree, layout: Layout | None
) -> tuple[Tensor, StateTree]:
    """The layer's output and state, with nothing kept for the backward pass but its input and the state before it."""
    if torch.compiler.is_compiling():  # which takes no contexts
        return checkpoint(layer, x, state, layout, use_reentrant=False)
    return checkpoint(layer, x, state, layout, use_reentrant=False, context_fn=partial(contexts, layer))


def contexts(layer: SequenceModule) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What surrounds the layer's forward pass, and its repetition: there it has the buffers and what is of a pass as
    the first pass left them, and afterwards those that it has by then, and what its parts left for the loss."""
    read: list[Tensor] = []
    of_pass: list[Any] = []
    holders = [(part, name) for part in layer.modules() for name, _ in part.named_buffers(recurse=False)]
    parts = [part for part in layer.modules() if hasattr(part, "auxiliary")]
    drawn = [(part, name) for part in layer.modules() for name in getattr(part, "of_pass", ())]

    @contextmanager
    def first() -> Iterator[None]:
        yield
        read.extend(part._buffers[name].clone() for part, name in holders)  # type: ignore[union-attr]
        of_pass.extend(getattr(part, name) for part, name in drawn)

    @contextmanager
    def again() -> Iterator[None]:
        held, left = [part._buffers[name] for part, name in holders], [part.auxiliary for part in parts]
        by_then = [getattr(part, name) for part, name in drawn]
        hold(read, of_pass)
        try:
            yield
        finally:
            hold(held, by_then)
            for part, auxiliary in zip(parts, left, strict=True):
                part.auxiliary = auxiliary

    def hold(tensors: list, values: list) -> None:
        for (part, name), tensor in zip(holders, tensors, strict=True):
            part._buffers[name] = tensor
        for (part, name), value in zip(drawn, values, strict=True):
            setattr(part, name, value)

    return first(), again()
