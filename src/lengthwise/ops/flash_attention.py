"""Softmax attention tile by tile, exact, with its log-sum-exp and a backward pass that recomputes the tiles.

    S = c Q Kᵀ + bias, −∞ where nothing is seen      P = softmax(S)      O = P V      LSE = log Σ_j exp(S_ij)

For every tile of queries, over the tiles of keys j that it sees any of:

    m' = max(m, rowmax S_j)     P_j = exp(S_j − m')     r = exp(m − m')     l ← r l + rowsum P_j     O ← r O + P_j V_j

and at the end O / l and LSE = m + log l. O stays unnormalised until then. The backward pass needs Q, K, V, O and LSE:

    Δ = rowsum(dO ⊙ O) − dLSE      P = exp(S − LSE)      dS = P ⊙ (dO Vᵀ − Δ)
    dV = Pᵀ dO                     dQ = c dS K           dK = c dSᵀ Q            dbias = dS

Extra memory is that of a few tiles and LSE, whatever the length. A query that sees nothing gives O = 0, LSE = −∞.

Dao 2023, arXiv 2307.08691.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from lengthwise.errors import InputError
from lengthwise.ops import fused_flash_attention
from lengthwise.ops.bias import Bias, Written
from lengthwise.ops.pattern import Pattern
from lengthwise.ops.patterns import causal
from lengthwise.ops.tiles import Frame, Tiles, sides, tiles_of
from lengthwise.ops.visibility import aligned


@dataclass(frozen=True)
class Tiling:
    """How the logits of one call are cut into tiles, and what is added to and hidden from each.

    frame: the tiles, and which of the queries and keys of the call they are of, in which order. scale: c.
    groups: query heads per key-value head; they are stacked as further rows of a tile, so that keys are never copied.
    """

    frame: Frame
    bias: Bias | None
    scale: float
    batch: int
    groups: int

    def logits(self, q: Tensor, k: Tensor, rows: slice, columns: slice, hides: bool) -> Tensor:
        """S of one tile, [batch · kv_heads, groups · rows, columns]; q already carries the scale."""
        scores = torch.bmm(q, k[:, columns].mT)
        by_head = scores.view(self.batch, -1, self.groups, rows.stop - rows.start, columns.stop - columns.start)
        if self.bias is not None:
            by_head += self.grouped(self.bias.tile(rows, columns))
        mask = self.frame.tiles.seen(rows, columns, hides).mask
        if mask is not None:
            by_head.masked_fill_(~mask[:, None, None], -torch.inf)
        return scores

    def grouped(self, bias: Tensor) -> Tensor:
        """A bias [b, heads or 1, queries, keys] with its heads divided by key-value head."""
        return bias.unsqueeze(1) if bias.shape[1] == 1 else bias.unflatten(1, (-1, self.groups))


def stack(x: Tensor, kv_heads: int, dtype: torch.dtype, chosen: Tensor | None = None) -> Tensor:
    """[batch, length, heads, dim] as [batch · kv_heads, groups, length, dim], contiguous. chosen: of these tokens."""
    x = x.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
    x = x if chosen is None else x.index_select(3, chosen)
    return x.to(dtype).contiguous().flatten(0, 1)


def unstack(x: Tensor, batch: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `stack`."""
    return x.unflatten(0, (batch, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3).to(dtype)


class FlashAttention(torch.autograd.Function):
    """The tiled forward and backward pass. `inputs` are those of the bias."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, tiling: Tiling, q: Tensor, k: Tensor, v: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """O and LSE."""
        output, lse = attend(tiling, q, k, v)
        ctx.tiling = tiling
        ctx.save_for_backward(q, k, v, output, lse, *inputs)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_o: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of q, k, v, and of what the bias is made of."""
        q, k, v, output, lse, *inputs = ctx.saved_tensors
        delta = (grad_o.to(lse.dtype) * output.to(lse.dtype)).sum(-1) - grad_lse
        d_inputs = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, lse.dtype)) for x in inputs]
        wanted = d_inputs if any(ctx.needs_input_grad[4:]) else []
        found = gradients(ctx.tiling, q, k, v, grad_o, lse, delta, wanted)
        return None, *found, *(d.to(x.dtype) for d, x in zip(d_inputs, inputs, strict=True))


def attend(tiling: Tiling, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """O of the chosen queries, [batch, queries, heads, value_dim], in the type of q, and LSE in float32 or wider."""
    batch, kv_heads, dtype = q.shape[0], k.shape[2], torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        own = stack(q, kv_heads, dtype, tiling.frame.queries)
        keys, values = (stack(x, kv_heads, dtype, tiling.frame.keys)[:, 0] for x in (k, v))
        form = fused_flash_attention.forward if fused_flash_attention.fits(own) else forward
        o, lse = form(tiling, own, keys, values)
        return unstack(o, batch, q.dtype), unstack(lse, batch, dtype).squeeze(-1)


def gradients(
    tiling: Tiling,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_o: Tensor,
    lse: Tensor,
    delta: Tensor,
    d_inputs: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the chosen queries, keys and values, in the types of q, k and v. lse: over all keys, also those
    that others choose. delta: Δ of each query. d_inputs: of the bias, are added to."""
    batch, kv_heads, dtype = q.shape[0], k.shape[2], lse.dtype
    of_queries, of_keys = (q, grad_o, lse.unsqueeze(-1), delta.unsqueeze(-1)), (k, v)
    with torch.autocast(q.device.type, enabled=False):
        own, d_o, level, delta = (stack(x, kv_heads, dtype, tiling.frame.queries) for x in of_queries)
        keys, values = (stack(x, kv_heads, dtype, tiling.frame.keys)[:, 0] for x in of_keys)
        empty = level == -torch.inf
        delta, level = delta.masked_fill(empty, 0), level.masked_fill(empty, torch.inf)
        form = fused_flash_attention.backward if fused_flash_attention.fits(own) else backward
        d_q, d_k, d_v = form(tiling, own, keys, values, d_o, level, delta, d_inputs)
        d_k, d_v = (unstack(d[:, None], batch, x.dtype) for d, x in ((d_k, k), (d_v, v)))
        return unstack(d_q, batch, q.dtype), d_k, d_v


def forward(tiling: Tiling, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """O, [batch · kv_heads, groups, queries, value_dim], and LSE of the same with 1."""
    q = q * tiling.scale
    o = values.new_empty(*q.shape[:3], values.shape[2])
    lse = o.new_empty(*o.shape[:3], 1)
    for rows, tiles in tiling.frame.tiles.rows:
        part = accumulate(tiling, q[:, :, rows].flatten(1, 2), keys, values, rows, tiles)
        o[:, :, rows], lse[:, :, rows] = (t.unflatten(1, (tiling.groups, -1)) for t in part)
    return o, lse


def backward(
    tiling: Tiling,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    d_o: Tensor,
    level: Tensor,
    delta: Tensor,
    d_inputs: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, keys and values. level: LSE, ∞ where nothing is seen. d_inputs: of the bias, are added to."""
    q = q * tiling.scale
    d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(keys), torch.zeros_like(values)
    for rows, tiles in tiling.frame.tiles.rows:
        q_tile, do_tile, level_tile, delta_tile = (t[:, :, rows].flatten(1, 2) for t in (q, d_o, level, delta))
        dq_tile = torch.zeros_like(q_tile)
        for columns, hides in tiles:
            p = tiling.logits(q_tile, keys, rows, columns, hides).sub_(level_tile).exp_()
            d_v[:, columns].baddbmm_(p.mT, do_tile)
            d_s = torch.bmm(do_tile, values[:, columns].mT).sub_(delta_tile).mul_(p)
            dq_tile.baddbmm_(d_s, keys[:, columns])
            d_k[:, columns].baddbmm_(d_s.mT, q_tile)
            if d_inputs and tiling.bias is not None:
                by_head = d_s.view(tiling.batch, -1, rows.stop - rows.start, columns.stop - columns.start)
                tiling.bias.add_gradients(d_inputs, by_head, rows, columns)
        d_q[:, :, rows] = dq_tile.unflatten(1, (tiling.groups, -1))
    return d_q.mul_(tiling.scale), d_k, d_v


def accumulate(
    tiling: Tiling, q: Tensor, keys: Tensor, values: Tensor, rows: slice, tiles: list[tuple[slice, bool]]
) -> tuple[Tensor, Tensor]:
    """O and LSE of one tile of queries, over the tiles of keys in turn."""
    o = q.new_zeros(*q.shape[:2], values.shape[2])
    total = q.new_zeros(*q.shape[:2], 1)
    highest = torch.full_like(total, -torch.inf)
    for columns, hides in tiles:
        p = tiling.logits(q, keys, rows, columns, hides)
        before, highest = highest, torch.maximum(highest, p.amax(-1, keepdim=True))
        # A row that has seen nothing yet has no level to subtract: −∞ − (−∞) would be NaN.
        level = highest.masked_fill(highest == -torch.inf, 0) if hides or tiling.bias is not None else highest
        p = p.sub_(level).exp_()
        shrink = (before - level).exp_()
        total = total.mul_(shrink).add_(p.sum(-1, keepdim=True))
        o = o.mul_(shrink).baddbmm_(p, values[:, columns])
    lse = highest.add_(total.log())
    return o.div_(total.masked_fill_(total == 0, 1)), lse


def flash_attention(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    *,
    pattern: Pattern | None = None,
    bias: Tensor | Bias | None = None,
    scale: float | None = None,
    query_documents: Int[Tensor, "#batch queries"] | None = None,
    key_documents: Int[Tensor, "#batch keys"] | None = None,
    positions: Int[Tensor, "#batch keys"] | None = None,
    tile: tuple[int, int] | None = None,
) -> tuple[Float[Tensor, "batch queries heads value_dim"], Float[Tensor, "batch queries heads"]]:
    """O and LSE (natural logarithm, scale and bias included), both differentiable, for any pattern and bias.

    pattern: causal by default; queries are the last of the keys. scale: 1/√head_dim by default.
    bias: a tensor or a `Bias`; the gradients of what it is made of are exact.
    query_documents, key_documents: keys of other documents are hidden. positions: see `patterns.aligned`.
    tile: queries and keys of a tile, `tiles.sides` by default. Sums are kept in float32, or float64 where the input is.
    """
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    if heads % kv_heads:
        raise InputError(f"kv_heads must divide heads: got kv_heads={kv_heads} and heads={heads}")
    tile = sides(queries, keys) if tile is None else tile
    if min(tile) < 1:
        raise InputError(f"tile must be at least 1 by 1, got {tile[0]} by {tile[1]}")
    pattern = causal() if pattern is None else pattern
    height, width = min(tile[0], max(queries, 1)), min(tile[1], max(keys, 1))
    if query_documents is None and key_documents is None and positions is None:
        tiles = tiles_of(pattern, queries, keys, q.device, height, width)
    else:
        where = query_documents, key_documents, positions, q.device
        tiles = Tiles(aligned(pattern, queries, keys, *where), height, width)
    added = _checked(bias, queries, keys)
    inputs = () if added is None else added.inputs
    tiled = None if added is None else added.over([x.detach() for x in inputs])
    scale = head_dim**-0.5 if scale is None else scale
    tiling = Tiling(Frame(tiles), tiled, scale, batch, heads // kv_heads)
    return FlashAttention.apply(tiling, q, k, v, *inputs)


def merge(
    o_a: Float[Tensor, "batch queries heads value_dim"],
    lse_a: Float[Tensor, "batch queries heads"],
    o_b: Float[Tensor, "batch queries heads value_dim"],
    lse_b: Float[Tensor, "batch queries heads"],
) -> tuple[Float[Tensor, "batch queries heads value_dim"], Float[Tensor, "batch queries heads"]]:
    """Attention over the union of two disjoint sets of keys, from the attention over each.

    O = (e^{LSE_a} O_a + e^{LSE_b} O_b) / (e^{LSE_a} + e^{LSE_b}),  LSE = log of the denominator.
    """
    highest = torch.maximum(lse_a, lse_b).detach()
    highest = highest.masked_fill(highest == -torch.inf, 0)
    weight_a, weight_b = (lse_a - highest).exp(), (lse_b - highest).exp()
    total = weight_a + weight_b
    share = weight_a / total.masked_fill(total == 0, 1)
    other = weight_b / total.masked_fill(total == 0, 1)
    o = o_a * share[..., None].to(o_a.dtype) + o_b * other[..., None].to(o_b.dtype)
    return o, highest + total.log()


def _checked(bias: Tensor | Bias | None, queries: int, keys: int) -> Bias | None:
    """The bias as such, where its sizes fit."""
    if bias is None:
        return None
    bias = Written(bias) if isinstance(bias, Tensor) else bias
    for size, full, name in ((bias.shape[2], queries, "queries"), (bias.shape[3], keys, "keys")):
        if size not in (1, full):
            raise InputError(f"bias must have {full} {name} or 1, got shape {tuple(bias.shape)}")
    return bias
