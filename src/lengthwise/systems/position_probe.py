"""Probes that read the position of a token from the hidden states of a frozen model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.models.embedding import TokenStack

Layers = Float[Tensor, "layers batch length dim"]


@torch.no_grad()
def hidden_states(model: TokenStack, tokens: Int[Tensor, "batch length"], branches: int = 2) -> Layers:
    """h^l for l = 0 .. N: what enters the stack, and what leaves it after every `branches` residual branches.

    Two branches, attention and feed-forward, are one layer of a Transformer.
    """
    found: list[Tensor] = []
    hooks = [model.stack.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0]))]
    for layer in model.stack.layers[branches - 1 :: branches]:
        hooks.append(layer.register_forward_hook(lambda _module, _inputs, output: found.append(output[0])))
    try:
        model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found)


class Probe(nn.Module):
    """logits of the position = W_2 relu(W_1 h), one pair of matrices a layer and no biases.

    W_1: [2 dim, dim], W_2: [length, 2 dim].
    """

    def __init__(self, layers: int, dim: int, length: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(layers, dim, 2 * dim).uniform_(-1, 1) / dim**0.5)
        self.second = nn.Parameter(torch.empty(layers, 2 * dim, length).uniform_(-1, 1) / (2 * dim) ** 0.5)

    def forward(self, hidden: Layers) -> Float[Tensor, "layers batch length classes"]:
        """Logits over positions, for each token of each layer."""
        return (hidden.flatten(1, 2) @ self.first).relu().matmul(self.second).unflatten(1, hidden.shape[1:3])


def mean_absolute_distances(
    model: TokenStack,
    train: Iterator[Int[Tensor, "batch length"]],
    test: Int[Tensor, "rows length"],
    *,
    steps: int = 300,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """For each layer, the mean of |predicted − true position| on `test`, after training a probe on `train`.

    The target of token i is i; the loss is cross-entropy, minimised by Adam. Guessing at random gives a third of the
    length.
    """
    torch.manual_seed(seed)
    hidden = hidden_states(model, test)
    places = torch.arange(test.shape[1])
    probe = Probe(len(hidden), hidden.shape[-1], len(places))
    optimizer = torch.optim.Adam(probe.parameters(), lr=learning_rate)
    for _ in range(steps):
        logits = probe(hidden_states(model, next(train)))
        target = places.expand(logits.shape[:3])
        # The sum over layers keeps each probe's gradient what it would be alone.
        loss = functional.cross_entropy(logits.flatten(0, 2), target.flatten()) * len(logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        guesses = probe(hidden).argmax(-1)
    return (guesses - places).abs().float().mean((1, 2)).tolist()
