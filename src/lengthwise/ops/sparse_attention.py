"""Softmax attention for any pattern, in time proportional to the tiles that it shows.

    o_i = Σ_j p_ij v_j      p_ij = softmax over the keys j that query i sees, of  c q_i · k_j

Each frame of the pattern goes through the tiles of `flash_attention`; LSE joins what frames give, and the backward pass
computes the logits of each tile again, so that extra memory is that of the output, whatever the pattern.

A query that sees nothing gives 0. On a GPU the same pattern goes to PyTorch's FlexAttention: `flex_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from lengthwise.ops.flash_attention import Tiling, attend, gradients, merge
from lengthwise.ops.tiles import Frame


def sparse_attention(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    frames: tuple[Frame, ...],
    scale: float | None = None,
) -> Float[Tensor, "batch queries heads value_dim"]:
    """o for every query, by the frames that `tiles.frames` found for these queries and keys. scale: c, 1/√head_dim by
    default."""
    return SparseAttention.apply(frames, q.shape[3] ** -0.5 if scale is None else scale, q, k, v)


class SparseAttention(torch.autograd.Function):
    """Frame by frame."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, frames: tuple[Frame, ...], scale: float, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """O."""
        o, lse, wide = None, None, _wide(q, k, v)
        for frame in frames:
            part, level = attend(Tiling(frame, None, scale, len(q), q.shape[2] // k.shape[2]), *wide)
            if o is None or lse is None:
                if frame.queries is None:
                    o, lse = part, level
                    continue
                o, lse = part.new_zeros(*q.shape[:3], v.shape[3]), level.new_full(q.shape[:3], -torch.inf)
                o[:, frame.queries], lse[:, frame.queries] = part, level
                continue
            rows = slice(None) if frame.queries is None else frame.queries
            o[:, rows], lse[:, rows] = merge(o[:, rows], lse[:, rows], part, level)
        if o is None or lse is None:
            o, lse = q.new_zeros(*q.shape[:3], v.shape[3]), wide[0].new_zeros(q.shape[:3])
        o = o.to(q.dtype)
        ctx.frames, ctx.scale = frames, scale
        ctx.save_for_backward(q, k, v, o, lse)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of q, k and v."""
        q, k, v, o, lse = ctx.saved_tensors
        wide = _wide(q, k, v)
        delta = (grad.to(lse.dtype) * o.to(lse.dtype)).sum(-1)
        totals: list[Tensor | None] = [None, None, None]
        for frame in ctx.frames:
            tiling = Tiling(frame, None, ctx.scale, len(q), q.shape[2] // k.shape[2])
            shares = gradients(tiling, *wide, grad, lse, delta)
            chosen = (frame.queries, frame.keys, frame.keys)
            for at, (share, index, x) in enumerate(zip(shares, chosen, wide, strict=True)):
                total = totals[at]
                if total is None and index is None:
                    totals[at] = share
                    continue
                total = torch.zeros_like(x) if total is None else total
                totals[at] = total.add_(share) if index is None else total.index_add_(1, index, share)
        found = (torch.zeros_like(x) if t is None else t.to(x.dtype) for t, x in zip(totals, (q, k, v), strict=True))
        return None, None, *found


def _wide(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In float32 or wider, in which frames are summed."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    return q.to(dtype), k.to(dtype), v.to(dtype)
