"""The bias of FIRE: a piecewise linear function of how far a key is, relative to where the query is.

    b_ij = A_s z_ij + B_s      z_ij = ψ(d_ij) r_i      d_ij = |p_i − p_j|      ψ(d) = log(1 + c d)

s is the piece that z_ij falls into: the number of kinks below it. A network of one hidden ReLU layer that reads a
single number is such a function, so that its bias costs a multiplication and an addition for each head, where passing
through the network would cost as much for every hidden unit, and again for every unit and head. Along keys that follow
each other z falls or rises, so that the keys of a piece are a range. With dS the gradient of the logits,

    dA_s = Σ dS z      dB_s = Σ dS      dz_ij = Σ_h dS A_s      dr_i = Σ_j dz ψ(d)      dc = Σ_ij dz r_i d / (1 + c d)

over the tokens of each piece. Kinks get no gradient, since b is continuous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lengthwise.ops import fused, memory
from lengthwise.ops.backend import resolve
from lengthwise.ops.bias import Bias, Written


@dataclass(frozen=True)
class FireBias(Bias):
    """The bias of queries and keys at any positions.

    c: at least 0. rate: r. slopes, offsets: A and B, of one piece more than there are kinks. kinks: in order.
    All of one dtype, float32 or float64, in which it is computed.
    """

    c: Float[Tensor, ""]
    rate: Float[Tensor, "rows queries"]
    slopes: Float[Tensor, "pieces heads"]
    offsets: Float[Tensor, "pieces heads"]
    kinks: Float[Tensor, " kinks"]
    q_positions: Num[Tensor, "rows queries"]
    k_positions: Num[Tensor, "_ keys"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Rows, heads, queries and keys."""
        rows = max(len(self.q_positions), len(self.k_positions))
        return rows, self.slopes.shape[1], self.q_positions.shape[1], self.k_positions.shape[1]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """c, r, A and B."""
        return self.c, self.rate, self.slopes, self.offsets

    def over(self, inputs: Sequence[Tensor]) -> FireBias:
        """Other c, r, A and B."""
        c, rate, slopes, offsets = inputs
        return replace(self, c=c, rate=rate, slopes=slopes, offsets=offsets)

    def scaled(self, factor: float) -> FireBias:
        """A and B times a number."""
        return replace(self, slopes=self.slopes * factor, offsets=self.offsets * factor)

    def of_heads(self, heads: slice) -> FireBias:
        """A and B of some heads."""
        return replace(self, slopes=self.slopes[:, heads], offsets=self.offsets[:, heads])

    def tile(self, queries: slice, keys: slice) -> Tensor:
        """b of these queries and keys."""
        if not self.runs_fused:
            return self.definition(queries, keys)
        if fused.needs_graph(*self.inputs):
            return Tile.apply(self, queries, keys, *self.inputs)
        return _tile(self, queries, keys)

    def add_gradients(self, into: Sequence[Tensor], d_logits: Tensor, queries: slice, keys: slice) -> None:
        """Sums over the tokens of each piece."""
        if self.runs_fused:
            _add_gradients(self, into, d_logits, queries, keys)
        else:
            super().add_gradients(into, d_logits, queries, keys)

    def definition(self, queries: slice, keys: slice) -> Tensor:
        """The same, one number at a time."""
        apart = (self.q_positions[:, queries, None] - self.k_positions[:, None, keys]).abs().to(self.rate.dtype)
        z = torch.log1p(self.c * apart) * self.rate[:, queries, None]
        piece = torch.bucketize(z.detach(), self.kinks)
        slope, offset = (functional.embedding(piece, table) for table in (self.slopes, self.offsets))
        return (slope * z[..., None] + offset).permute(0, 3, 1, 2)

    @property
    def runs_fused(self) -> bool:
        """Whether the kernels compute it."""
        whole = not (self.q_positions.is_floating_point() or self.k_positions.is_floating_point())
        forms = ("numba", "reference") if whole and not torch.compiler.is_compiling() else ("reference",)
        return resolve("auto", forms, self.rate) == "numba"

    @cached_property
    def span(self) -> Float[Tensor, " span"]:
        """Every distance, from 0 on."""
        ends = [p for p in (self.q_positions, self.k_positions) if p.numel()]
        farthest = int(max(p.max() for p in ends) - min(p.min() for p in ends)) if ends else 0
        return torch.arange(farthest + 1, dtype=self.rate.dtype)

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the kernels read: ψ of every distance, the last distance of each piece but the last for every query, and
        A and B, head by head."""
        c, rate, slopes, offsets = (x.detach() for x in self.inputs)
        psi = torch.log1p(c * self.span)
        borders = torch.searchsorted(psi, self.kinks / rate[..., None], right=True, out_int32=True) - 1
        return psi, borders, slopes.T.contiguous(), offsets.T.contiguous()


class Tile(torch.autograd.Function):
    """One tile by the kernels, with its gradients."""

    @staticmethod
    def forward(ctx: Any, bias: FireBias, queries: slice, keys: slice, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        """b."""
        ctx.bias, ctx.place = bias.over([x.detach() for x in inputs]), (queries, keys)
        return _tile(ctx.bias, queries, keys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_tile: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of what the bias is made of."""
        into = [torch.zeros_like(x) for x in ctx.bias.inputs]
        ctx.bias.add_gradients(into, d_tile, *ctx.place)
        return None, None, None, *into


def _tile(bias: FireBias, queries: slice, keys: slice) -> Tensor:
    kernels: Any = import_module("lengthwise.ops.numba_fire_bias")

    psi, borders, slopes, offsets = bias.tables
    q_places, k_places = bias.q_positions[:, queries], bias.k_positions[:, keys]
    out = memory.empty(bias.shape[0], len(slopes), q_places.shape[1], k_places.shape[1], dtype=psi.dtype)
    given = fused.arrays(q_places, k_places, psi, bias.rate[:, queries], borders[:, queries], slopes, offsets, out)
    fused.run([partial(kernels.tile, *given, *part) for part in _parts(out)])
    return out


def last_row(
    psi: Float[Tensor, " span"],
    rate: float,
    slopes: Float[Tensor, "heads pieces"],
    offsets: Float[Tensor, "heads pieces"],
    kinks: Float[Tensor, " kinks"],
    keys: int,
) -> Written:
    """b of the last of so many keys that follow each other, by the kernel, without a graph. psi: ψ(0), ψ(1), …, at
    least as many as there are keys. slopes, offsets: head by head."""
    heads = len(slopes)
    b = torch.empty((1, heads, 1, keys), dtype=psi.dtype)
    addresses = [x.data_ptr() for x in (psi, slopes, offsets, kinks, b)]
    _last(psi.dtype)(fused.count(keys, heads * keys), keys, heads, len(kinks), fused.bits(rate), *addresses)
    return Written(b)


@cache
def _last(dtype: torch.dtype) -> fused.Native:
    """The kernel of the last query for numbers of a type."""
    kernels: Any = import_module("lengthwise.ops.numba_fire_bias")
    return fused.Native(kernels.last_float32 if dtype == torch.float32 else kernels.last_float64)


def _add_gradients(bias: FireBias, into: Sequence[Tensor], d_logits: Tensor, queries: slice, keys: slice) -> None:
    kernels: Any = import_module("lengthwise.ops.numba_fire_bias")

    psi, borders, slopes, _ = bias.tables
    growth = bias.span / (1 + bias.c.detach() * bias.span)
    q_places, k_places, rate = bias.q_positions[:, queries], bias.k_positions[:, keys], bias.rate[:, queries]
    parts = _parts(d_logits[: bias.shape[0]])
    d_c, d_rate = psi.new_zeros(len(parts)), psi.new_zeros(bias.shape[0], rate.shape[1])
    d_slopes, d_offsets = (psi.new_zeros(len(parts), *slopes.shape) for _ in range(2))
    given = fused.arrays(q_places, k_places, psi, growth, rate, borders[:, queries], slopes, d_logits.to(psi.dtype))
    found = fused.arrays(d_c, d_rate, d_slopes, d_offsets)
    fused.run([partial(kernels.gradients, *given, *found, number, *part) for number, part in enumerate(parts)])
    into[0].add_(d_c.sum())
    into[1][:, queries] += d_rate.sum_to_size(rate.shape)
    into[2].add_(d_slopes.sum(0).T)
    into[3].add_(d_offsets.sum(0).T)


def _parts(tile: Tensor) -> list[tuple[int, int]]:
    """The queries of all rows, divided among the threads."""
    return fused.parts(tile.shape[0] * tile.shape[2], tile.numel())
