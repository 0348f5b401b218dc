"""Context-aware biases: ALiBi whose steps are learned and depend on the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.errors import InputError, unknown
from lengthwise.ops.bias import Bias, Difference
from lengthwise.positions.alibi import slopes
from lengthwise.positions.position import Hook, Position, heads_given, require_heads

STARTS = ("equal", "spread")
"""How steep the heads begin: all alike, or as those of ALiBi."""


class Cable(Position):
    """Each token has a step for each head, and a logit falls by the steps on the way from the key to the query.

        s_m = softplus(x_m W_b + b_b)      C_i = −Σ_{m≤i} s_m      b_ij = C_i − C_j = −Σ_{j<m≤i} s_m

    The query's own step counts, the key's doesn't. Steps that don't depend on the token are ALiBi's slopes. With
    causal=False b_ij = −|C_i − C_j|, an extension that the paper's decoders don't have. Every layer of a model has its
    own W_b [dim, heads] and b_b [heads]; attention keeps C of each token with its keys, `heads` numbers in float32.

    dim: the width of what the layer reads. heads: the number of query heads of the attention that it serves.
    start: W_b begins as N(0, 0.02²) and b_b as 0, so that all heads begin with steps near log 2; with "spread" b_b
        begins where the step of a token that says nothing is ALiBi's slope for the head, which isn't in the paper.
    W_b is kept from weight decay, which would draw the heads back to steps that don't depend on the token; the released
    code decays it. Its models don't divide q · k by √head_dim: `attention(scale=1.0)`.

    Raises InputError without heads, for heads or a width that aren't the attention's, and for an unknown start.
    Veisi et al. 2025, arXiv 2503.08067.
    """

    hooks: ClassVar[tuple[Hook, ...]] = ("bias", "steps")
    per_layer = True

    def __init__(self, dim: int, *, heads: int | None = None, causal: bool = True, start: str = "equal") -> None:
        super().__init__()
        heads = heads_given("cable", "steps", heads)
        if start not in STARTS:
            raise unknown("start", start, STARTS)
        self.dim, self.heads, self.causal, self.start = dim, heads, causal, start
        self.weight = nn.Parameter(torch.empty(dim, heads))
        self.offset = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        self.weight.no_weight_decay = True  # type: ignore[attr-defined]  # here, since a copy of it loses the mark
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.offset)
        if self.start == "spread":
            with torch.no_grad():
                self.offset.copy_(slopes(self.heads).expm1().log())

    def steps(self, x: Float[Tensor, "batch length dim"], heads: int) -> Float[Tensor, "batch length heads"]:
        """−s of each token, so that the sums are C, in float32 or wider."""
        require_heads("cable", "steps", self.heads, heads)
        if x.shape[2] != self.dim:
            raise InputError(f"cable was made for layers of width {self.dim}, and this one reads {x.shape[2]}")
        dtype = torch.promote_types(x.dtype, torch.float32)
        return -functional.softplus((x @ self.weight.to(x.dtype)).to(dtype) + self.offset)

    def bias(
        self,
        q_positions: Num[Tensor, "... queries"],  # noqa: ARG002
        k_positions: Num[Tensor, "... keys"],  # noqa: ARG002
        heads: int,  # noqa: ARG002
        sums: tuple[Tensor, Tensor] | None = None,
    ) -> Difference | Apart:
        """C_i − C_j, or −|C_i − C_j|."""
        if sums is None:
            raise InputError("cable reads the sums of its steps, and this attention carries none")
        of_queries, of_keys = (c.transpose(1, 2) for c in sums)
        if of_queries.shape[2] > 1:
            # Head by head, since tiles that are read across memory are several times slower.
            of_queries, of_keys = of_queries.contiguous(), of_keys.contiguous()
        difference = Difference(of_queries, of_keys)
        return difference if self.causal else Apart(difference)

    def last_bias(
        self,
        keys: int,  # noqa: ARG002
        heads: int,
        device: torch.device,
        sums: tuple[Tensor, Tensor] | None = None,
    ) -> Difference | Apart:
        """The same, without places, which it doesn't read."""
        nowhere = torch.empty(1, 0, device=device)
        return self.bias(nowhere, nowhere, heads, sums)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"dim={self.dim}, heads={self.heads}, causal={self.causal}, start={self.start}"


@dataclass(frozen=True)
class Apart(Bias):
    """b_ij = −w |f_i − g_j|: sums read in both directions."""

    difference: Difference
    weight: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Rows, heads, queries and keys."""
        return self.difference.shape

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """f and g."""
        return self.difference.inputs

    def over(self, inputs: Sequence[Tensor]) -> Apart:
        """Other f and g."""
        return replace(self, difference=self.difference.over(inputs))

    def tile(self, queries: slice, keys: slice) -> Tensor:
        """The distances of these queries and keys."""
        return self.difference.tile(queries, keys).abs() * -self.weight

    def scaled(self, factor: float) -> Apart:
        """w times a number."""
        return replace(self, weight=self.weight * factor)

    def of_heads(self, heads: slice) -> Apart:
        """Those of some heads."""
        return replace(self, difference=self.difference.of_heads(heads))

    def add_gradients(self, into: Sequence[Tensor], d_logits: Tensor, queries: slice, keys: slice) -> None:
        """Those of the differences, each with its sign."""
        sign = self.difference.tile(queries, keys).sign() * -self.weight
        self.difference.add_gradients(into, d_logits * sign, queries, keys)
