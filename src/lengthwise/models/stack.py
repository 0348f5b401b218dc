"""How parts are put together: residual branches with their norms, one after the other, and both directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.contract import Growth, Layout, SequenceModule, StateTree
from lengthwise.errors import InputError, unknown
from lengthwise.models.expression import Leaf, parse
from lengthwise.ops.rms_norm import RMSNorm

NORMS: dict[str, type[nn.Module]] = {"rmsnorm": RMSNorm, "layernorm": nn.LayerNorm}
"""The norms by the names that models use."""


EPS = 1e-5
"""What a norm adds to the mean square or the variance, unless it is told another number."""


def build_norm(name: str, dim: int) -> nn.Module:
    """A norm over the width: "rmsnorm", "layernorm", or with an eps of its own, as "rmsnorm(eps=1e-6)".

    Raises InputError for an unknown norm and for an eps that isn't a number above 0.
    """
    tree = parse(name)
    if not isinstance(tree, Leaf) or tree.name not in NORMS:
        raise unknown("norm", name, NORMS)
    given = dict(tree.kwargs)
    eps = given.pop("eps", EPS)
    if tree.args or given or isinstance(eps, bool) or not isinstance(eps, int | float) or eps <= 0:
        raise InputError(f"a norm takes eps, a number above 0, as rmsnorm(eps=1e-6), got {name}")
    return NORMS[tree.name](dim, eps=eps)


class Residual(SequenceModule):
    """A part on a residual branch, normed before: y = x + part(norm(x))."""

    residual = False

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

    def begin(self, source: Float[Tensor, "batch source dim"], layout: Layout | None = None) -> StateTree:
        """That of the part."""
        return self.part.begin(source, layout)

    def state_nbytes(self, length: int) -> int:
        """That of the part."""
        return self.part.state_nbytes(length)


class PostNorm(Residual):
    """A part on a residual branch, normed after it is added: y = norm(x + part(x)).

    The residual of the first Transformer, of BERT and of BART. Vaswani et al. 2017, arXiv 1706.03762.
    """

    normed = True

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """The normed sum, and the part's state."""
        y, state = self.part(x, state, layout)
        return self.norm(x + y), state


class TwoHop(SequenceModule):
    """Two parts, where the second reads what both give and adds to what the first was given.

        y = x + first(norm_1(x))          output = x + second(norm_2(y))

    The residual of a Megalodon block, Ma et al. 2024, arXiv 2404.08801.
    """

    residual = False

    def __init__(self, first: Residual, second: Residual):
        super().__init__()
        self.first, self.second = first, second
        declare(self, [first, second])

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """The output, and the states of both parts."""
        before, after = (None, None) if state is None else state
        y, before = self.first(x, before, layout)
        z, after = self.second.part(self.second.norm(y), after, layout)
        return x + z, (before, after) if self.causal else None

    def begin(self, source: Float[Tensor, "batch source dim"], layout: Layout | None = None) -> StateTree:
        """Those of both."""
        return self.first.begin(source, layout), self.second.begin(source, layout)

    def state_nbytes(self, length: int) -> int:
        """The sum of both."""
        return self.first.state_nbytes(length) + self.second.state_nbytes(length)


class Stack(SequenceModule):
    """Modules one after the other: y = m_n(… m_1(x)). The state is the tuple of theirs."""

    residual = False

    def __init__(self, modules: Sequence[SequenceModule]):
        super().__init__()
        self.layers = nn.ModuleList(modules)
        self.normed = bool(modules) and modules[-1].normed
        declare(self, modules)

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

    def begin(self, source: Float[Tensor, "batch source dim"], layout: Layout | None = None) -> StateTree:
        """Those of all modules."""
        return tuple(layer.begin(source, layout) for layer in self.layers)  # type: ignore[operator]

    def state_nbytes(self, length: int) -> int:
        """The sum over the modules."""
        return sum(m.state_nbytes(length) for m in self.layers)  # type: ignore[operator, misc]


class Chain(Stack):
    """Modules one after the other that stand on one residual branch: y = x + m_n(… m_1(norm(x)))."""

    residual = True

    def __init__(self, modules: Sequence[SequenceModule]):
        super().__init__(modules)
        self.prenorm = modules[0].prenorm
        self.normed = False


def declare(whole: SequenceModule, modules: Sequence[SequenceModule]) -> None:
    """Declare of a module what follows from its parts, which work one after the other."""
    whole.causal = all(m.causal for m in modules)
    whole.growth = widest_growth([m.growth for m in modules])
    fields = [m.receptive_field for m in modules]
    known = [f for f in fields if f is not None]
    whole.receptive_field = 1 + sum(f - 1 for f in known) if len(known) == len(fields) else None
    whole.compiles = all(m.compiles for m in modules)  # type: ignore[misc]
    whole.breaks = {law: why for m in modules for law, why in m.breaks.items()}  # type: ignore[misc]


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
        self.residual, self.prenorm, self.normed = ahead.residual, ahead.prenorm, False
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
