"""A temporal convolution network: residual layers of dilated causal convolutions, each reaching further back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lengthwise.caches.recent import Recent
from lengthwise.channels.mlp import ACTIVATIONS
from lengthwise.contract import Layout, SequenceModule, State
from lengthwise.errors import InputError, unknown
from lengthwise.ops.dilated_convolution import dilated_convolution, newest_output
from lengthwise.ops.fused import needs_graph
from lengthwise.ops.initial import begin_normal

MOST_LEVELS = 64
"""More would reach further than any sequence goes."""

Sequence = Float[Tensor, "batch length dim"]
Starts = Bool[Tensor, "batch length"]


@dataclass(frozen=True)
class TCNState(State):
    """The last inputs of every layer: (K − 1) f^s of layer s."""

    histories: tuple[Recent, ...]


class TCN(SequenceModule):
    """Residual layers of dilated convolutions, a memory of a large but finite reach.

        a⁰ = x      a^{s+1} = a^s + act(b^s + Σ_{i=0..K−1} w^s_i a^s_{t − i f^s})      s = 0 … S − 1      output = a^S

    It sees R = 1 + (K − 1) (f^S − 1) / (f − 1) tokens, itself among them. With f = K that is K^S, and the taps of all
    layers together reach each of them by exactly one path; a smaller f reaches some by several, a larger one leaves
    holes, which only the shorter paths past a layer fill.

    kernel: K. dilation_factor: f, K by default. levels: S, the number of layers. depthwise: whether w_i is one number
    for each channel, so that channels stay apart, or a matrix. activation: "silu", "relu", "gelu", "squared_relu" or
    None. causal: sees the past alone; otherwise the taps are spread evenly to both sides, (K − 1) f^s / 2 tokens to
    each, and K must be odd. Weights begin as N(0, 1/√K), dense ones as N(0, 1/√(K dim)), biases as 0.

    State: the last (K − 1) f^s inputs of each layer, (R − 1) dim numbers, whatever the length: long for a state, since
    what it saves is time in training. A token decoded alone reads K S of them and copies none.
    Bai et al. 2018, arXiv 1803.01271, with f = 2 and two convolutions a layer; in place of a moving average, Terzić et
    al. 2023, arXiv 2312.05605. Raises InputError for sizes below 1, an unknown activation, and an even K without a
    direction.
    """

    inherits: ClassVar[tuple[str, ...]] = ("causal",)

    def __init__(
        self,
        dim: int,
        *,
        kernel: int = 17,
        dilation_factor: int | None = None,
        levels: int = 3,
        depthwise: bool = True,
        activation: str | None = "silu",
        causal: bool = True,
    ) -> None:
        super().__init__()
        factor = kernel if dilation_factor is None else dilation_factor
        for name, size in {"kernel": kernel, "dilation_factor": factor, "levels": levels}.items():
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        if levels > MOST_LEVELS:
            raise InputError(f"levels must be at most {MOST_LEVELS}, got {levels}: each sees {factor} times as far")
        if activation is not None and activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        if not causal and kernel % 2 == 0:
            raise InputError(f"a kernel that sees as far to both sides has an odd number of taps, got kernel={kernel}")
        self.width, self.kernel, self.depthwise, self.activation = dim, kernel, depthwise, activation
        self.causal = causal
        self.dilations = [factor**s for s in range(levels)]
        self.reach = 1 + (kernel - 1) * sum(self.dilations)
        self.receptive_field = self.reach if causal else None
        groups = dim if depthwise else 1
        convolutions = [nn.Conv1d(dim, dim, kernel, dilation=d, groups=groups) for d in self.dilations]
        begin_normal(*convolutions, std=1 / math.sqrt(kernel * dim / groups))
        self.layers = nn.ModuleList(convolutions)

    def forward(
        self, x: Sequence, state: TCNState | None = None, layout: Layout | None = None
    ) -> tuple[Sequence, TCNState | None]:
        """The last layer's output for every token, and the inputs to go on from, None where it isn't causal."""
        histories = []
        for number in range(len(self.dilations)):
            if self.causal:
                before = None if state is None else state.histories[number]
                y, after = self.causal_layer(number, x, before, None if layout is None else layout.starts)
                histories.append(after)
            else:
                y = self.two_sided_layer(number, x, layout)
            x = x + (y if self.activation is None else ACTIVATIONS[self.activation](y))
        return x, TCNState(tuple(histories)) if self.causal else None

    def weights(self, number: int) -> tuple[Tensor, Tensor]:
        """w and b of a layer, w as the convolution takes it."""
        weight, bias = self.layers[number].parameters()
        return weight[:, 0] if self.depthwise else weight, bias

    def causal_layer(
        self, number: int, x: Sequence, history: Recent | None, starts: Starts | None
    ) -> tuple[Sequence, Recent]:
        """The convolution of a layer, and its last inputs."""
        (weight, bias), dilation = self.weights(number), self.dilations[number]
        if x.shape[1] == 1 and history is not None and not needs_graph(x, weight, bias, history.inputs):
            if starts is not None and starts.any():
                history = history.forget(starts[:, 0])
            inputs, history = history.extend(x)
            return newest_output(inputs, weight, bias, dilation=dilation).to(x.dtype), history
        tail = None if history is None else history.inputs
        y, tail = dilated_convolution(x, weight, bias, tail, starts, dilation=dilation)
        return y, Recent(tail)

    def two_sided_layer(self, number: int, x: Sequence, layout: Layout | None) -> Sequence:
        """The convolution of a layer with the taps up to the middle one, and backwards with those after it."""
        (weight, bias), dilation = self.weights(number), self.dilations[number]
        past, future = weight.split((self.kernel // 2 + 1, self.kernel // 2), -1)
        future = torch.cat([future.flip(-1), torch.zeros_like(past[..., :1])], -1)
        starts, ends = (None, None) if layout is None else (layout.starts, layout.reversed().starts)
        y, _ = dilated_convolution(x, past, bias, None, starts, dilation=dilation)
        back, _ = dilated_convolution(x.flip(1), future, None, None, ends, dilation=dilation)
        return y + back.flip(1)

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """(R − 1) dim numbers in float32 or wider, after any number of tokens."""
        if not self.causal:
            return 0
        return (self.reach - 1) * self.width * max(4, next(self.parameters()).element_size())

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"kernel={self.kernel}, dilations={self.dilations}, depthwise={self.depthwise}, reach={self.reach}"
