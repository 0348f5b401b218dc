"""One softmax over keys that come in several parts, each of which some of the queries see.

    S = c Q Kᵀ      O_p = softmax(S_p) V_p      LSE_p = log Σ_j exp(S_pj)      over the keys of part p
    o = Σ_p α_p O_p          α_p = exp(LSE_p) / Σ_m exp(LSE_m)

A key that is in two parts counts twice. With P = exp(S − LSE) over all parts, the backward pass of a part is

    dV = Pᵀ dO          dS = P ⊙ (dO Vᵀ − rowsum(dO ⊙ A))          A: o, or O_p where α is taken as a constant

so that parts need nothing of each other but o and LSE. Queries and keys of a part are views of tensors that hold more,
[batch, rows, tokens, heads, …]: rows that attend side by side. Nothing is copied but what the kernel is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from lengthwise.ops.flash_attention import merge
from lengthwise.ops.partial_attention import partial_attention, partial_gradients

View = Callable[[Tensor], Tensor]
"""From [batch, tokens, heads, …] to [batch, rows, some tokens, some heads, …], without a copy."""


@dataclass(frozen=True)
class Keys:
    """Keys that a group of queries sees.

    source: which pair of keys and values, in the order of the call. view: what of them, as for the queries; all of
    them, which have rows already, where it is None. causal: with as many queries, those up to the query. mask: True
    where a key is seen.
    """

    source: int
    view: View | None = None
    causal: bool = False
    mask: Bool[Tensor, "#rows #heads queries keys"] | None = None

    def of(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values as views."""
        pair = tensors[2 * self.source], tensors[2 * self.source + 1]
        return pair if self.view is None else (self.view(pair[0]), self.view(pair[1]))


@dataclass(frozen=True)
class Part:
    """Queries, and the keys that they see: further ones under one α, where it is taken as a constant."""

    queries: View
    keys: tuple[Keys, ...]

    def attend(self, q: Tensor, tensors: Sequence[Tensor], scale: float) -> tuple[Tensor, Tensor]:
        """O and LSE, [batch, rows, queries, heads, …]."""
        shown = self.queries(q)
        queries, found = shown.flatten(0, 1), None
        for keys in self.keys:
            k, v = (x.flatten(0, 1) for x in keys.of(tensors))
            one = _attend(queries, k, v, scale, keys)
            found = one if found is None else merge(*found, *one)
        assert found is not None
        return found[0].unflatten(0, shown.shape[:2]), found[1].unflatten(0, shown.shape[:2])


@dataclass
class Call:
    """Keys, values and parts, as `joint_attention` takes them, put together one after the other."""

    pairs: list[tuple[Tensor, Tensor]]
    parts: list[Part]

    def add(self, queries: View, pair: Iterable[Tensor], mask: Bool[Tensor, "..."] | None = None) -> None:
        """Queries that see keys and values, which have rows already, by a mask where one is given."""
        key, value = pair
        if key.shape[2]:
            self.parts.append(Part(queries, (Keys(len(self.pairs), mask=mask),)))
            self.pairs.append((key, value))


class JointAttention(torch.autograd.Function):
    """All parts, and their backward pass. What the first parts give is written, what the others give is added."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, parts: Sequence[Part], first: int, scale: float, constant: bool, q: Tensor, *tensors: Tensor
    ) -> Tensor:
        """o."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        y = q.new_empty(*q.shape[:3], tensors[1].shape[-1], dtype=dtype)
        level = y.new_empty(q.shape[:3])
        outputs = []
        for number, part in enumerate(parts):
            o, lse = part.attend(q, tensors, scale)
            whole, before = part.queries(y), part.queries(level)
            if number < first:
                whole.copy_(o)
                before.copy_(lse)
            else:
                after = torch.logaddexp(before, lse.to(dtype))
                whole.mul_((before - after).exp_()[..., None]).add_(o * (lse - after).exp_()[..., None])
                before.copy_(after)
            outputs.append(o)
        y = y.to(tensors[1].dtype)
        ctx.parts, ctx.first, ctx.scale, ctx.count = parts, first, scale, len(tensors)
        ctx.save_for_backward(q, y, level, *tensors, *(outputs if constant else ()))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of the queries and of all keys and values."""
        q, y, level, *rest = ctx.saved_tensors
        tensors, outputs = rest[: ctx.count], rest[ctx.count :]
        d_q = torch.empty_like(q, dtype=level.dtype)
        d_tensors = [
            (torch.empty_like if number < 2 else torch.zeros_like)(x, dtype=level.dtype)
            for number, x in enumerate(tensors)
        ]
        for number, part in enumerate(ctx.parts):
            o = outputs[number] if outputs else part.queries(y)
            given = (part.queries(grad), part.queries(q), o, part.queries(level))
            slope, queries, o, lse = (x.flatten(0, 1) for x in given)
            for place, keys in enumerate(part.keys):
                (k, v), (d_k, d_v) = keys.of(tensors), keys.of(d_tensors)
                found = _gradients(slope, queries, k.flatten(0, 1), v.flatten(0, 1), o, lse, ctx.scale, keys)
                writes = number < ctx.first and place == 0
                for total, share in zip((part.queries(d_q), d_k, d_v), found, strict=True):
                    share = share.unflatten(0, total.shape[:2])
                    if writes:
                        total.copy_(share)
                    else:
                        total.add_(share)
        gradients = (d.to(x.dtype) for d, x in zip(d_tensors, tensors, strict=True))
        return None, None, None, None, d_q.to(q.dtype), *gradients


def joint_attention(
    q: Float[Tensor, "batch queries heads head_dim"],
    pairs: Sequence[tuple[Tensor, Tensor]],
    parts: Sequence[Part],
    *,
    first: int = 1,
    scale: float | None = None,
    constant: bool = False,
) -> Float[Tensor, "batch queries heads value_dim"]:
    """o for every query.

    pairs: keys and values, each [batch, tokens, heads, dim], or [batch, rows, tokens, heads, dim] where parts take them
    as they are. first: so many parts, the first ones, together have every query once, none of which sees nothing, and
    each of them begins with keys of pair 0, of which they have every token once.
    scale: c, 1/√head_dim by default. constant: whether α is a constant to the backward pass.
    """
    scale = q.shape[3] ** -0.5 if scale is None else scale
    tensors = [
        x.to(q.dtype) for pair in pairs for x in pair
    ]  # a state may be of another dtype than what goes on from it
    return JointAttention.apply(parts, first, scale, constant and len(parts) > 1, q, *tensors)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, keys: Keys) -> tuple[Tensor, Tensor]:
    if k.shape[1] == 1 and keys.mask is None:
        logits = (q * k).sum(-1, dtype=torch.promote_types(q.dtype, torch.float32)) * scale
        return v.expand(*q.shape[:3], v.shape[3]), logits
    return partial_attention(q, k, v, scale=scale, mask=keys.mask, is_causal=keys.causal)


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float, keys: Keys
) -> tuple[Tensor, Tensor, Tensor]:
    if k.shape[1] == 1 and keys.mask is None:
        p = ((q * k).sum(-1, dtype=lse.dtype) * scale - lse).exp_()[..., None]
        d_s = (grad * (v - o)).sum(-1, keepdim=True, dtype=lse.dtype) * p * scale
        return d_s * k, (d_s * q).sum(1, keepdim=True), (p * grad).sum(1, keepdim=True)
    return partial_gradients(grad, q, k, v, o, lse, scale=scale, mask=keys.mask, is_causal=keys.causal)
