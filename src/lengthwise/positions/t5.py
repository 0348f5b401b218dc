"""Learned biases for buckets of relative positions."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.errors import InputError
from lengthwise.ops.bias import Bias, relative
from lengthwise.positions.kept_row import KeptRow
from lengthwise.positions.position import Hook, Position, heads_given, require_heads


class T5(Position):
    """A learned bias for each head and each bucket of distances.

        b_h(p_i, p_j) = B[bucket(p_j − p_i), h]          B: [buckets, heads], initially N(0, 0.02)

    Half of the buckets hold one distance each, the other half hold logarithmically wider ranges up to `max_distance`,
    and all that is farther shares the last one. With `causal` the buckets are spent on the past alone (the future gets
    the bucket of distance 0); otherwise half of them are for keys after the query. Layers that share the object share
    the table, as in the paper.

    heads: the number of query heads of the attention that it serves. Raises InputError where it isn't given, or where
        that attention has another number.

    Raffel et al. 2019, arXiv 1910.10683.
    """

    hooks: ClassVar[tuple[Hook, ...]] = ("bias",)
    by_distance = True

    def __init__(
        self, *, heads: int | None = None, causal: bool = True, buckets: int = 32, max_distance: int = 128
    ) -> None:
        super().__init__()
        one_sided = buckets if causal else buckets // 2
        heads = heads_given("t5", "a bias", heads)
        if one_sided < 2 or buckets % 2:
            raise InputError(f"buckets must be even and at least {2 if causal else 4}, got {buckets}")
        if max_distance <= one_sided // 2:
            raise InputError(f"max_distance must be more than {one_sided // 2}, got {max_distance}")
        self.heads, self.causal, self.buckets, self.max_distance = heads, causal, buckets, max_distance
        self.weight = nn.Parameter(torch.randn(buckets, heads) * 0.02)
        self.kept = KeptRow()

    def bias(
        self,
        q_positions: Num[Tensor, "... queries"],
        k_positions: Num[Tensor, "... keys"],
        heads: int,
        sums: tuple[Tensor, Tensor] | None = None,  # noqa: ARG002
    ) -> Bias:
        """The bias of the bucket that each distance falls into."""
        require_heads("t5", "biases", self.heads, heads)
        return relative(self.of, q_positions, k_positions, heads, (self.weight,))

    def last_bias(
        self, keys: int, heads: int, device: torch.device, sums: tuple[Tensor, Tensor] | None = None
    ) -> Bias | None:
        """The same, from what is kept."""
        require_heads("t5", "biases", self.heads, heads)
        kept = self.kept.bias(self.of, keys, heads, device, (self.weight,))
        return super().last_bias(keys, heads, device, sums) if kept is None else kept

    def of(
        self, distance: Num[Tensor, "rows queries keys"], weight: Float[Tensor, "buckets heads"]
    ) -> Float[Tensor, "rows heads queries keys"]:
        """The bias at each distance."""
        index = bucket(distance, self.buckets, self.max_distance, causal=self.causal)
        return functional.embedding(index, weight).movedim(-1, 1)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"heads={self.heads}, causal={self.causal}, buckets={self.buckets}, max_distance={self.max_distance}"


def bucket(distance: Num[Tensor, "*shape"], buckets: int, max_distance: int, *, causal: bool) -> Int[Tensor, "*shape"]:
    """The bucket of each relative position p_j − p_i.

    With n buckets a side and e = n/2, a distance d goes to bucket d if d < e, otherwise to
    e + floor(log(d/e) / log(max_distance/e) · (n − e)), at most n − 1. Where both sides count, keys after the query use
    the second n buckets.
    """
    if causal:
        side = torch.zeros_like(distance, dtype=torch.long)
        distance = (-distance).clamp(min=0)
    else:
        buckets //= 2
        side = (distance > 0).long() * buckets
        distance = distance.abs()
    exact = buckets // 2
    # Float32 as in the released models: at the borders between buckets another precision rounds to another bucket.
    ratio = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return side + torch.where(distance < exact, distance.long(), far)
