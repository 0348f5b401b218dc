"""Several views of one sequence through shared weights, blended at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lengthwise.contract import Layout, SequenceModule, State, StateTree, joined, map_state
from lengthwise.errors import InputError, unknown
from lengthwise.models.stack import Stack, declare

BLENDS = ("learned", "average")
"""How views can be blended."""


@dataclass(frozen=True)
class PerspectivesState(State):
    """The state of each view."""

    views: tuple[StateTree, ...]


class Perspectives(SequenceModule):
    """A stack read from several perspectives: every view has mixing vectors of its own, all else is shared.

        x⁽ⁱ⁾ = norm(stack⁽ⁱ⁾(x))          b = softmax_i(W_b mean_i x⁽ⁱ⁾)          y = Σ_i b_i x⁽ⁱ⁾

    The views don't see each other before the blend. Parts say in `viewed` which of their parameters are the views' own:
    of RWKV the vectors μ of the token shifts, so that each view has its own past and its own recurrent state. They
    begin equal in all views, and as long as they are, y is that of the stack alone, whatever W_b. Since the head of a
    model is linear, blending what it reads is blending its logits.

    views: how many. blend: "learned", or "average" for b = 1/views. norm: the model's last, which stands here so that
    the blend comes after it.

    State: views times that of the stack. Costs as much as a batch that is views times as large.
    Dumitru et al. 2024, arXiv 2402.02625. Raises InputError for views below 1, an unknown blend, and a stack none of
    whose parts has anything of a view's own.
    """

    residual = False
    normed = True

    def __init__(
        self, modules: Sequence[SequenceModule], norm: nn.Module, dim: int, *, views: int = 2, blend: str = "learned"
    ):
        super().__init__()
        if views < 1:
            raise InputError(f"views must be at least 1, got {views}")
        if blend not in BLENDS:
            raise unknown("blend", blend, BLENDS)
        self.views = views
        self.stack = Stack(modules)
        self.norm = nn.Identity() if self.stack.normed else norm
        self.blend = nn.Linear(dim, views, bias=False) if blend == "learned" else None
        declare(self, [self.stack])
        owners = [(module, name) for module in self.stack.modules() for name in getattr(module, "viewed", ())]
        if not owners:
            raise InputError("no part of these layers can look from several perspectives; rwkv and rwkv_channels can")
        for module, name in owners:
            each = nn.Parameter(getattr(module, name).detach().expand(views, -1).clone())
            each.no_weight_decay = True  # type: ignore[attr-defined]
            setattr(module, name, each)

    def own_parameters(self) -> list[nn.Parameter]:
        """What a stack without perspectives lacks: the views' own vectors and W_b."""
        parts = [module for module in self.stack.modules() if hasattr(module, "viewed")]
        vectors = [getattr(part, name) for part in parts for name in part.viewed]  # type: ignore[union-attr, operator]
        return vectors + ([] if self.blend is None else [self.blend.weight])

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: PerspectivesState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], PerspectivesState | None]:
        """The blend of all views, and their states."""
        if layout is not None:
            layout = layout.select(torch.arange(len(x), device=x.device).repeat(self.views))
        given = None if state is None else joined(state.views)
        y, after = self.stack(x.repeat(self.views, 1, 1), given, layout)
        views = self.norm(y).unflatten(0, (self.views, len(x)))
        return self.blended(views), PerspectivesState(separated(after, self.views)) if self.causal else None

    def blended(self, views: Float[Tensor, "views batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Σ_i b_i x⁽ⁱ⁾"""
        if self.blend is None or self.views == 1:
            return views.mean(0)
        weights = torch.softmax(self.blend(views.mean(0)), -1)
        return torch.einsum("vbld, blv -> bld", views, weights.to(views.dtype))

    def state_nbytes(self, length: int) -> int:
        """views times that of the stack."""
        return self.views * self.stack.state_nbytes(length)


def separated(state: StateTree, views: int) -> tuple[StateTree, ...]:
    """The states that `joined` put together."""
    return tuple(map_state(lambda t, i=i: t.chunk(views)[i], state) for i in range(views))  # type: ignore[misc]
