"""How parts are put together: a residual branch with its norm, one after the other, and both directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.contract import Growth, Layout, SequenceModule, StateTree
from lengthwise.errors import unknown

NORMS: dict[str, type[nn.Module]] = {"rmsnorm": nn.RMSNorm, "layernorm": nn.LayerNorm}
"""The norms by the names that models use."""


def build_norm(name: str, dim: int) -> nn.Module:
    """A norm over the width, with eps 1e-5."""
    if name not in NORMS:
        raise unknown("norm", name, NORMS)
    return NORMS[name](dim, eps=1e-5)


class Residual(SequenceModule):
    """A part on a residual branch, normed before: y = x + part(norm(x))."""

    def __init__(self, part: SequenceModule, norm: nn.Module):
        super().__init__()
        self.norm = norm
        self.part = part
        self.causal, self.growth, self.receptive_field = part.causal, part.growth, part.receptive_field
        self.compiles, self.breaks = part.compiles, part.breaks  # type: ignore[misc]

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """x with what the branch adds, and the part's state."""
        y, state = self.part(self.norm(x), state, layout)
        return x + y, state

    def state_nbytes(self, length: int) -> int:
        """That of the part."""
        return self.part.state_nbytes(length)


class Stack(SequenceModule):
    """Modules one after the other: y = m_n(… m_1(x)). The state is the tuple of theirs."""

    def __init__(self, modules: Sequence[SequenceModule]):
        super().__init__()
        self.layers = nn.ModuleList(modules)
        self.causal = all(m.causal for m in modules)
        self.growth = widest_growth([m.growth for m in modules])
        fields = [m.receptive_field for m in modules]
        known = [f for f in fields if f is not None]
        self.receptive_field = 1 + sum(f - 1 for f in known) if len(known) == len(fields) else None
        self.compiles = all(m.compiles for m in modules)  # type: ignore[misc]
        self.breaks = {law: why for m in modules for law, why in m.breaks.items()}  # type: ignore[misc]

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """The output of the last module, and all states."""
        states = []
        for index, layer in enumerate(self.layers):
            x, after = layer(x, None if state is None else state[index], layout)
            states.append(after)
        return x, tuple(states) if self.causal else None

    def state_nbytes(self, length: int) -> int:
        """The sum over the modules."""
        return sum(m.state_nbytes(length) for m in self.layers)  # type: ignore[operator, misc]


def widest_growth(growths: Sequence[Growth]) -> Growth:
    """The growth of states that are kept side by side."""
    order: tuple[Growth, ...] = ("constant", "window", "linear")
    return max(growths, key=order.index, default="constant")


class Bidirectional(SequenceModule):
    """A causal module and its twin that reads backwards, added: y = f(x) + reverse(b(reverse(x))).

    The twin has weights of its own. Documents are read backwards each on its own, and padding reaches neither.
    """

    causal = False

    def __init__(self, ahead: SequenceModule, back: SequenceModule):
        super().__init__()
        self.ahead = ahead
        self.back = back
        self.compiles = ahead.compiles and back.compiles  # type: ignore[misc]

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,  # noqa: ARG002
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """The sum of both directions; no state, since the end must be known."""
        ahead, _ = self.ahead(x, None, layout)
        back, _ = self.back(torch.flip(x, [1]), None, None if layout is None else layout.reversed())
        return ahead + torch.flip(back, [1]), None

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """Nothing is kept."""
        return 0
