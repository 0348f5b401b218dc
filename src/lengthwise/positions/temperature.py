"""What attention's logits are divided by: a number, or one that falls as the position of the query grows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor

from lengthwise.errors import InputError


@dataclass(frozen=True)
class Temperature:
    """τ of softmax(ℓ / τ), where ℓ holds all that makes a logit: content and bias together.

    varies: whether τ depends on the position of the query. Such a temperature is applied to the queries, so that the
    cache stays as it is, and doesn't go with a position that adds a bias: a bias isn't multiplied by the query.
    """

    varies: ClassVar[bool] = False

    def factor(
        self,
        positions: Num[Tensor, "rows queries"],
        training: bool,
    ) -> float | Float[Tensor, "rows queries"]:
        """1 / τ for queries at these positions in their documents, counted from 0: a number for all, or one for each,
        in float64."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Temperature):
    """The same τ for all queries, in training too. Below 1 attention is sharper than it was trained.

    Chi et al. 2023, arXiv 2311.00684. Raises InputError unless τ is above 0 and finite.
    """

    tau: float

    def __post_init__(self) -> None:
        if isinstance(self.tau, bool) or not (math.isfinite(self.tau) and self.tau > 0):
            raise InputError(f"a temperature must be above 0 and finite, got {self.tau}")

    def factor(self, positions: Num[Tensor, "rows queries"], training: bool) -> float:  # noqa: ARG002
        """1 / τ."""
        return 1 / self.tau


@dataclass(frozen=True)
class LogTemperature(Temperature):
    """1 / τ = s(n), which grows with the logarithm of the tokens that the query sees, n = its position + 1.

    s(n) = 1 for n ≤ L₀ and in training; beyond it a subclass says how s grows.

    trained: L₀, the length that the model was trained at. Raises InputError for less than 1.
    """

    varies: ClassVar[bool] = True
    trained: int

    def __post_init__(self) -> None:
        if self.trained < 1:
            raise InputError(f"the trained length must be at least 1, got {self.trained}")

    def factor(self, positions: Num[Tensor, "rows queries"], training: bool) -> float | Float[Tensor, "rows queries"]:
        """s(n) of each query, 1 for all in training."""
        if training:
            return 1.0
        return self.grown((positions.to(torch.float64) + 1).clamp_min(self.trained))

    def grown(self, n: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """s(n) for n ≥ L₀."""
        raise NotImplementedError


@dataclass(frozen=True)
class LogScaling(LogTemperature):
    """s(n) = log(a + n) / log(a + L₀) beyond the trained length L₀.

    a: at least 1. SWAN's law; Puvvada et al. 2025, arXiv 2504.08719.
    """

    a: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.a) and self.a >= 1):
            raise InputError(f"a must be at least 1, got {self.a}")

    def grown(self, n: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """s(n) for n ≥ L₀."""
        return torch.log(self.a + n) / math.log(self.a + self.trained)


@dataclass(frozen=True)
class LogSlope(LogTemperature):
    """s(n) = 1 + b log(n / L₀) beyond the trained length L₀: the law with its slope given.

    b: at least 0, so that attention is never flatter than it was trained. Puvvada et al. 2025, arXiv 2504.08719.
    """

    b: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.b) and self.b >= 0):
            raise InputError(f"b must be at least 0, got {self.b}")

    def grown(self, n: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """s(n) for n ≥ L₀."""
        return 1 + self.b * torch.log(n / self.trained)


TEMPERATURES: dict[str, Callable[..., Temperature]] = {
    "constant": Constant,
    "log_scaling": LogScaling,
    "log_slope": LogSlope,
}
"""The temperatures by the names that expressions use."""


def as_temperature(given: Temperature | float | None) -> Temperature | None:
    """The temperature that is meant: a number is a constant one."""
    return given if given is None or isinstance(given, Temperature) else Constant(float(given))
