"""Spiking parts: neurons that integrate along the sequence and fire, and embeddings of spikes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lengthwise.contract import Layout, SequenceModule, State, StateTree
from lengthwise.errors import InputError
from lengthwise.ops.fused import work_dtype
from lengthwise.ops.integrate_and_fire import integrate_and_fire, spike


@dataclass(frozen=True)
class MembraneState(State):
    """What the neurons have gathered since they last fired."""

    membrane: Float[Tensor, "batch dim"]


class IntegrateAndFire(SequenceModule):
    """One leaky integrate-and-fire neuron for each channel, whose time is the sequence.

        H_t = U_{t-1} + (x_t - U_{t-1}) / τ          S_t = Θ(H_t - 1)          U_t = H_t (1 - S_t)

    The output S is 0 or 1; `ops.integrate_and_fire` says what its gradient is. tau: τ, at least 1. A mixer whose
    output spikes is `chain(rwkv + integrate_and_fire)`.

    State: the membrane U, dim numbers. Zhu et al. 2023, arXiv 2302.13939. Raises InputError for τ below 1.
    """

    residual = prenorm = False
    breaks: ClassVar[dict[str, str]] = {
        "bfloat16": "a spike is 0 or 1, so an input rounded across the threshold changes it by 1; the bound is that"
        " outputs are 0 or 1 in every precision",
        "gradients": "the derivative of a spike is an arctangent's, which finite differences of a step don't show",
    }

    def __init__(self, dim: int, *, tau: float = 2.0):
        super().__init__()
        if not tau >= 1:
            raise InputError(f"tau must be at least 1, got {tau}")
        self.width, self.tau = dim, tau

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: MembraneState | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], MembraneState]:
        """The spikes of every token, and the membrane after the last one."""
        membrane = None if state is None else state.membrane
        spikes, membrane = integrate_and_fire(x, self.tau, membrane, None if layout is None else layout.starts)
        return spikes, MembraneState(membrane)

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """4 bytes for each channel."""
        return 4 * self.width


class Spikes(SequenceModule):
    """Θ(x) in place of x: 1 where it isn't negative, else 0, as embeddings are made binary.

    The gradient is that of `ops.integrate_and_fire`. Zhu et al. 2023, arXiv 2302.13939.
    """

    receptive_field = 1
    residual = prenorm = False
    breaks: ClassVar[dict[str, str]] = IntegrateAndFire.breaks

    def __init__(self, dim: int):  # noqa: ARG002 - every part is told its width
        super().__init__()

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: StateTree = None,  # noqa: ARG002 - a token alone leaves nothing to keep
        layout: Layout | None = None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "batch length dim"], StateTree]:
        """0 or 1 for each number; there is no state."""
        return spike(x.to(work_dtype(x.dtype))).to(x.dtype), None

    def state_nbytes(self, length: int) -> int:  # noqa: ARG002
        """Nothing is kept."""
        return 0
