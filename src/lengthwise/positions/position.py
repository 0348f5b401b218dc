"""What a position encoding is: up to five hooks through which order enters attention."""

# ruff: noqa: ARG002 - the hooks are declared here for subclasses to write

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from lengthwise.errors import InputError, unknown
from lengthwise.ops.bias import Bias
from lengthwise.ops.pattern import Pattern

Hook = Literal["embed", "rotate", "bias", "pattern", "steps"]
"""A place where order can enter."""

HOOKS: tuple[Hook, ...] = ("embed", "rotate", "bias", "pattern", "steps")


class Position(nn.Module):
    """A position encoding. A subclass writes the hooks that it needs and names them in `hooks`.

        embed     x ← x + e(p)                          once, on the embeddings of a model
        rotate    q_i, k_j ← R(p_i) q_i, R(p_j) k_j     in every layer, after the split into heads, before the cache
        bias      q_i · k_j + b_h(p_i, p_j)             added to the scaled logits of every layer, before the softmax
        pattern   who may see whom                      combined with the pattern of the attention by `&`
        steps     C_i = C_{i−1} + s(x_i)                sums that run along with the keys, for `bias` to read

    A hook that isn't named changes nothing, so a caller may call them all; `has` tells it which are worth calling.
    Positions are counted inside the document, from 0, as integers or floats: [length] for all rows, or [batch, length].
    A cache keeps keys as `rotate` left them, and their positions. Nothing else of a position may be baked into it,
    since a bias may depend on the position of the query too. The positions of padding mean nothing. An encoding with
    `steps` has `bias` too, so whatever has no room for a bias refuses both.

    With `by_distance` the bias depends on positions by their differences alone, so that a caller may count them from
    anywhere, as along a row of several documents.

    A model passes one object down to all its layers, which share its parameters. With `per_layer`, which a class or an
    object may set, every layer gets a copy with parameters of its own instead: `for_layer`.
    """

    hooks: ClassVar[tuple[Hook, ...]] = ()
    by_distance: ClassVar[bool] = False
    per_layer: bool = False

    def has(self, hook: str) -> bool:
        """Whether this encoding uses the hook. Raises InputError for a name that is no hook."""
        if hook not in HOOKS:
            raise unknown("hook", hook, HOOKS)
        return hook in self.hooks

    def embed(
        self, x: Float[Tensor, "batch length dim"], positions: Num[Tensor, "... length"]
    ) -> Float[Tensor, "batch length dim"]:
        """The embeddings with their positions."""
        return x

    def require(self, head_dim: int) -> None:
        """Raises InputError where heads of this width can't have this position; the layers ask when they are built."""

    def rotate(
        self,
        q: Float[Tensor, "batch queries heads head_dim"],
        k: Float[Tensor, "batch keys kv_heads head_dim"],
        q_positions: Num[Tensor, "... queries"],
        k_positions: Num[Tensor, "... keys"],
    ) -> tuple[Float[Tensor, "batch queries heads head_dim"], Float[Tensor, "batch keys kv_heads head_dim"]]:
        """Queries and keys turned to their positions. All heads share the angles."""
        return q, k

    def bias(
        self,
        q_positions: Num[Tensor, "... queries"],
        k_positions: Num[Tensor, "... keys"],
        heads: int,
        sums: tuple[Tensor, Tensor] | None = None,
    ) -> Bias | None:
        """What is added to the logits, in float32 or wider; None adds nothing. `heads` counts query heads.

        sums: C of the queries and of the keys, [batch, queries, heads] and [batch, keys, heads], for an encoding that
        has the hook `steps`.
        """
        return None

    def last_bias(
        self, keys: int, heads: int, device: torch.device, sums: tuple[Tensor, Tensor] | None = None
    ) -> Bias | None:
        """`bias` of one query, the last of so many keys, which are at 0, 1, 2, …, as a token decoded alone asks for it.

        A subclass may answer from what it has kept of the tokens before.
        """
        places = torch.arange(keys, device=device)[None]
        return self.bias(places[:, keys - 1 :], places, heads, sums)

    def steps(self, x: Float[Tensor, "batch length dim"], heads: int) -> Float[Tensor, "batch length heads"]:
        """s(x_i): what each token, as the attention layer reads it, adds to the sum of each head."""
        raise NotImplementedError(f"{type(self).__name__} has no steps")

    def pattern(self) -> Pattern | None:
        """What narrows who is seen; None narrows nothing."""
        return None

    def begin_pass(self, training: bool) -> None:
        """Called by a model once before its layers, for what all of them share in one pass."""

    def for_layer(self) -> Position:
        """What an attention layer uses of a position that its model passes down."""
        if not self.per_layer:
            return self
        own = copy.deepcopy(self)
        own.reset_parameters()
        return own

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""


def holds(parameters: Iterable[Tensor]) -> tuple[Any, ...]:
    """What tells whether something made of parameters still holds: their addresses and version counters, which
    assignments through `.data` don't count, and the mode, since what inference mode made is of no use to a graph."""
    given = [(p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in parameters]
    return (torch.is_inference_mode_enabled(), *given)


def heads_given(name: str, what: str, heads: int | None) -> int:
    """The number of query heads that an encoding is made for. Raises InputError for none, and for less than one."""
    if heads is None:
        raise InputError(f"{name} has {what} for each query head and needs their number, as in {name}(heads=4)")
    if heads < 1:
        raise InputError(f"heads must be at least 1, got {heads}")
    return heads


def require_heads(name: str, what: str, heads: int, given: int) -> None:
    """Raises InputError where an attention has other heads than its encoding."""
    if heads != given:
        raise InputError(f"{name} has {what} for {heads} heads, the attention has {given}; write {name}(heads={given})")


def angles(positions: Num[Tensor, "... length"], rotated: int, base: float | int) -> Float[Tensor, "... length half"]:
    """p · base^(−2i/rotated) for i < rotated/2, in float64.

    In float32 the product would lose, from about 1e5 on, the part of the turn that counts. Cosine and sine may be
    rounded to any dtype afterwards.
    """
    channel = torch.arange(0, rotated, 2, dtype=torch.float64, device=positions.device)
    frequencies = torch.pow(torch.tensor(base, dtype=torch.float64, device=positions.device), -channel / rotated)
    return positions.to(torch.float64).unsqueeze(-1) * frequencies
