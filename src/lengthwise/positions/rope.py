"""Rotary positions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor

from lengthwise.errors import InputError, unknown
from lengthwise.ops.rotation import LAYOUTS, rotate
from lengthwise.positions.position import Hook, Position, angles

FEW = 64
"""Positions up to which a table is kept for the next layer: for more it costs little beside turning by it. A token that
comes alone gets so many at a time, since those after it come next."""


class RoPE(Position):
    """Rotary positions: each pair of channels of q and k is turned by an angle proportional to the position.

        θ_i = base^(−2i/D)      φ = p · θ_i / scale      i = 0 .. D/2 − 1
        (a, b) ← (a cos φ − b sin φ, a sin φ + b cos φ)

    so that ⟨R_m q, R_n k⟩ = qᵀ R_{n−m} k depends on positions through their difference alone. Lengths of vectors stay
    as they are, values are not turned, and there are no parameters. D is the width of a head.

    base: 10000 in the paper; larger bases turn more slowly and are used for longer contexts.
    fraction: the part of the channels that is turned, from the first on, with θ computed from their number as D.
    layout: "half" pairs channel i with i + D/2 (GPT-NeoX, Llama); "interleaved" pairs 2i with 2i + 1 (the paper,
        GPT-J). They differ by a permutation of the rows of W_q and W_k: `permute_rows`.
    scale: position interpolation (Chen et al. 2023, arXiv 2306.15595); 4 squeezes four times the length into the
        trained range.
    trained: L, the length that a model was trained on, for the interpolation by parts of Llama 3.1 (Grattafiori et al.
        2024, arXiv 2407.21783): pairs that turn often within L keep their θ, since they tell near tokens apart. With
        n_i = L θ_i / 2π turns, φ = p · θ_i · (m_i + (1 − m_i) / scale), m_i = (n_i − slow) / (fast − slow) held
        between 0 and 1. None interpolates all pairs alike.
    slow, fast: turns within L up to which θ is divided by the whole scale, and from which on it is kept.

    Angles are computed in float64; cosine and sine are then rounded to the dtype of q. The table of a few tokens is
    kept for the next layer, which mostly asks for the same. Raises InputError where the number of turned channels is
    odd or zero.

    Su et al. 2021, arXiv 2104.09864.
    """

    hooks: ClassVar[tuple[Hook, ...]] = ("rotate",)

    def __init__(
        self,
        *,
        base: float | int = 10000.0,
        fraction: float | int = 1.0,
        layout: str = "half",
        scale: float | int = 1.0,
        trained: int | None = None,
        slow: float | int = 1.0,
        fast: float | int = 4.0,
    ) -> None:
        super().__init__()
        if base <= 0 or scale <= 0:
            raise InputError(f"base and scale must be positive, got base={base} and scale={scale}")
        if trained is not None and (trained < 1 or not 0 < slow < fast):
            raise InputError(
                f"trained must be at least 1 and slow above 0 and below fast, got {trained}, {slow} and {fast}"
            )
        if not 0 < fraction <= 1:
            raise InputError(f"fraction must be above 0 and at most 1, got {fraction}")
        if layout not in LAYOUTS:
            raise unknown("layout", layout, LAYOUTS)
        self.base, self.fraction, self.layout, self.scale = base, fraction, layout, scale
        self.trained, self.slow, self.fast = trained, slow, fast
        self.latest: Table | None = None
        self.ahead: Table | None = None

    def rotate(
        self,
        q: Float[Tensor, "batch queries heads head_dim"],
        k: Float[Tensor, "batch keys kv_heads head_dim"],
        q_positions: Num[Tensor, "... queries"],
        k_positions: Num[Tensor, "... keys"],
    ) -> tuple[Float[Tensor, "batch queries heads head_dim"], Float[Tensor, "batch keys kv_heads head_dim"]]:
        """Queries and keys turned to their positions."""
        turn = self.turn(q_positions, q.shape[-1], q.dtype)
        if k_positions is q_positions and k.dtype == q.dtype:
            q, k = rotate((q, k), *turn, self.layout)
            return q, k
        key_turn = self.turn(k_positions, k.shape[-1], k.dtype)
        return rotate([q], *turn, self.layout)[0], rotate([k], *key_turn, self.layout)[0]

    def rotated(self, head_dim: int) -> int:
        """How many channels of a head are turned. Raises InputError for none and for an odd number."""
        rotated = round(self.fraction * head_dim)
        if rotated % 2 or rotated == 0:
            raise InputError(
                f"rope turns pairs of channels, got {rotated} of {head_dim} channels (fraction={self.fraction}); "
                "choose heads of an even width"
            )
        return rotated

    def require(self, head_dim: int) -> None:
        """Raises InputError for heads whose turned channels don't come in pairs."""
        self.rotated(head_dim)

    def turn(
        self, positions: Num[Tensor, "... length"], head_dim: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "... length 1 rotated"], Float[Tensor, "... length 1 rotated"]]:
        """cos φ for each turned channel of a head, and the ∓ sin φ that its partner comes in with: minus for the first
        of a pair."""
        elsewhere = positions.device.type != "cpu" or positions.requires_grad  # comparing would wait for the device
        if torch.compiler.is_compiling() or elsewhere or positions.numel() > FEW:
            return self._turn(positions, head_dim, dtype)
        latest, asked = self.latest, (head_dim, dtype, self.base, self.scale)
        if latest is None or not latest.of(positions, asked):
            alone = positions.numel() == 1 and positions.dtype == torch.long
            turn = self._ahead(int(positions), asked) if alone else self._turn(positions, head_dim, dtype)
            latest = self.latest = Table(positions, asked, turn)
        return latest.turn

    def _ahead(self, place: int, asked: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """The turn of one place, from a table of it and those after it."""
        table = self.ahead
        if table is None or not table.holds(asked) or not 0 <= place - table.first < FEW:
            places = torch.arange(place, place + FEW)
            table = self.ahead = Table(places, asked, self._turn(places, *asked[:2]), place)
        cos, sin = table.turn
        return cos.narrow(0, place - table.first, 1), sin.narrow(0, place - table.first, 1)

    def _turn(self, positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rotated = self.rotated(head_dim)
        phase = (angles(positions, rotated, self.base) * self.slowed(rotated, positions.device)).unsqueeze(-2)
        cos, sin = phase.cos().to(dtype), phase.sin().to(dtype)
        if self.layout == "half":
            return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
        return cos.repeat_interleave(2, dim=-1), torch.stack([-sin, sin], dim=-1).flatten(-2)

    def slowed(self, rotated: int, device: torch.device | None = None) -> Float[Tensor, " half"] | float:
        """What the scale leaves of each θ: 1 / scale, or as many turns as a pair makes within the trained length
        allow."""
        if self.trained is None:
            return 1 / self.scale
        turns = self.trained / (2 * math.pi)
        whole = turns * angles(torch.ones(1, device=device), rotated, self.base)[0]
        kept = ((whole - self.slow) / (self.fast - self.slow)).clamp(0, 1)
        return kept + (1 - kept) / self.scale

    def extra_repr(self) -> str:
        """The settings, for printing."""
        parts = "" if self.trained is None else f", trained={self.trained}, slow={self.slow}, fast={self.fast}"
        return f"base={self.base}, fraction={self.fraction}, layout={self.layout}, scale={self.scale}{parts}"


class Table:
    """The cosines and sines of a few positions, for whoever asks for the same next.

    What was made in inference mode is of no use to a pass with gradients, so that the mode belongs to the question.
    first: the first position, where they follow each other.
    """

    def __init__(self, positions: Tensor, asked: tuple[Any, ...], turn: tuple[Tensor, Tensor], first: int = 0) -> None:
        self.positions, self.asked = positions, (*asked, torch.is_inference_mode_enabled())
        self.turn, self.first = turn, first

    def holds(self, asked: tuple[Any, ...]) -> bool:
        """Whether all was the same but the positions."""
        return self.asked == (*asked, torch.is_inference_mode_enabled())

    def of(self, positions: Tensor, asked: tuple[Any, ...]) -> bool:
        """Whether this is the table of these positions, with all else that was asked for."""
        if not self.holds(asked):
            return False
        same = self.positions is positions
        return same or (self.positions.dtype == positions.dtype and torch.equal(self.positions, positions))


def permute_rows(
    weight: Float[Tensor, "rows ..."], heads: int, *, source: str, target: str, fraction: float | int = 1.0
) -> Float[Tensor, "rows ..."]:
    """The weight or bias of a projection to queries or keys, made for one pairing of channels, for use with another.

    Channels 2i and 2i + 1 of an interleaved head are channels i and i + D/2 of a half-split one. `heads` counts the
    heads that the rows are made of (key-value heads for W_k). W_v and W_o stay as they are.
    """
    for layout in (source, target):
        if layout not in LAYOUTS:
            raise unknown("layout", layout, LAYOUTS)
    if weight.shape[0] % heads:
        raise InputError(f"heads must divide the rows, got {heads} heads and {weight.shape[0]} rows")
    if source == target:
        return weight
    head_dim = weight.shape[0] // heads
    rotated = round(fraction * head_dim)
    to_half = torch.arange(rotated, device=weight.device).view(-1, 2).T.reshape(-1)
    order = torch.arange(head_dim, device=weight.device)
    order[:rotated] = to_half if target == "half" else to_half.argsort()
    return weight.unflatten(0, (heads, head_dim))[:, order].flatten(0, 1)
