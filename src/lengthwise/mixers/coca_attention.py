"""Collinear constrained attention: keys point where the query points, in every plane that rotary positions turn."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor

from lengthwise.errors import unknown
from lengthwise.mixers.attention import Attention
from lengthwise.ops.pattern import Pattern
from lengthwise.ops.rotation import rotate
from lengthwise.positions.rope import RoPE
from lengthwise.positions.temperature import Temperature

FORMS = ("exact", "released")
"""The score as the paper defines it, or as its released code computes it."""


class Collinear(RoPE):
    """Rotary positions for a query and the lengths of the keys that are collinear with it.

        t_j = relu((T_j + T_{j+D/2}) / 2)          ρ_j = q_j² + q_{j+D/2}²          θ_j = base^(−2j/D), j < D/2
        q'_m = [ρ_j cos mθ_j, ρ_j sin mθ_j]        k'_n = [t_j cos nθ_j, t_j sin nθ_j]
        q'_m · k'_n = Σ_j ρ_mj t_nj cos((m − n) θ_j) = (R_m q_m) · (R_n (q_m ⊙ [t_n, t_n]))

    That is form="exact". form="released" is what the released models were trained with, where keys and queries are
    turned each on its own, so that scores depend on where both are and not on m − n alone:

        q'_m = q_m ⊙ R_m q_m          k'_n = R_n [t_n, t_n]

    `rotate` is given q and T, and gives q' and k'. base, scale: as of `RoPE`. Raises InputError for an unknown form and
    heads of an odd width.
    """

    def __init__(self, *, base: float | int = 10000.0, scale: float | int = 1.0, form: str = "exact") -> None:
        super().__init__(base=base, scale=scale)
        if form not in FORMS:
            raise unknown("form", form, FORMS)
        self.form = form

    def rotate(
        self,
        q: Float[Tensor, "batch queries heads head_dim"],
        k: Float[Tensor, "batch keys kv_heads head_dim"],
        q_positions: Num[Tensor, "... queries"],
        k_positions: Num[Tensor, "... keys"],
    ) -> tuple[Float[Tensor, "batch queries heads head_dim"], Float[Tensor, "batch keys kv_heads head_dim"]]:
        """q' and k', of q and T."""
        of_queries = self.turn(q_positions, q.shape[-1], q.dtype)
        of_keys = of_queries if k_positions is q_positions else self.turn(k_positions, k.shape[-1], k.dtype)
        t = torch.stack(k.chunk(2, dim=-1)).mean(0).relu()
        if self.form == "released":
            turned = rotate([q], *of_queries, self.layout)[0], rotate([torch.cat([t, t], -1)], *of_keys, self.layout)[0]
            return q * turned[0], turned[1]
        rho = torch.stack(q.chunk(2, dim=-1)).square().sum(0)
        return along(rho, *of_queries), along(t, *of_keys)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"base={self.base}, scale={self.scale}, form={self.form}"


def along(
    lengths: Float[Tensor, "batch tokens heads half"],
    cos: Float[Tensor, "... tokens 1 head_dim"],
    sin: Float[Tensor, "... tokens 1 head_dim"],
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Vectors of these lengths at the angles of their positions, one in each plane."""
    half = lengths.shape[-1]
    return torch.cat([lengths * cos[..., :half], lengths * sin[..., half:]], dim=-1)


class CoCAAttention(Attention):
    """Softmax attention whose keys are collinear with the query in every plane that is turned by its position.

        q = W_q x      T = W_k x      v = W_v x      t_j = relu((T_j + T_{j+D/2}) / 2) ≥ 0, j < D/2
        a(m, n) = 1/√D Σ_{j<D/2} ρ_mj t_nj cos((m − n) θ_j)      ρ_mj = q_mj² + q_{m,j+D/2}²      θ_j = base^(−2j/D)

    The angle between query and key at distance 0 is 0 in every plane, where rotary positions leave it to chance, so
    that the score of equal t is largest there. Computed as one product of vectors of width D (`Collinear`): it costs
    what attention with rotary positions does, in parameters too, as W_k gives T. Half of the planes begin with t = 0
    and get no gradient through it.

    heads, kv_heads, head_dim, window, pattern, causal, temperature, bias, depth: as of `Attention`. Heads that share
    keys share t. base, scale: of θ, as of `RoPE`; they may be changed on `position` of a trained layer, for position
    interpolation and for other bases on longer contexts. form: "exact", or "released" for weights that were trained by
    the released code; the two are different functions. Maps begin as those of `Attention`.

    Scores are cubic in x, where those of attention are quadratic: half precision overflows sooner.

    State: that of `Attention`, which holds keys k' as they were turned; with another base or scale begin a new one.
    Raises InputError as `Attention` does, and for an odd width of heads and an unknown form.

    Zhu et al. 2023, arXiv 2309.08646.
    """

    inherits: ClassVar[tuple[str, ...]] = ("causal", "depth")
    breaks: ClassVar[dict[str, str]] = {
        "finite": "scores grow with the cube of the inputs, so that at inputs of 1e4 their rounding alone overflows in"
        " the kernel's backward pass; inputs up to 1e3 give finite numbers"
    }

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        window: int | None = None,
        pattern: Pattern | None = None,
        base: float | int = 10000.0,
        scale: float | int = 1.0,
        form: str = "exact",
        causal: bool = True,
        temperature: Temperature | float | None = None,
        bias: bool = False,
        depth: int = 1,
    ) -> None:
        super().__init__(
            dim,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            window=window,
            pattern=pattern,
            position=Collinear(base=base, scale=scale, form=form),
            causal=causal,
            temperature=temperature,
            bias=bias,
            depth=depth,
        )
