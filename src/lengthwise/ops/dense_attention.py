"""Softmax attention of every query to every key given to it, by PyTorch's fused kernel."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lengthwise.ops.bias import Bias
from lengthwise.ops.visibility import Visibility


def dense(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    scale: float | None = None,
    mask: Bool[Tensor, "#batch #heads #queries keys"] | Float[Tensor, "#batch #heads #queries keys"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "batch queries heads value_dim"]:
    """Attention to all keys, to those of a mask, or, with as many queries as keys, to those up to the query.

    mask: True where a key is seen, or what is added to the logits. Query heads that share keys read them once wherever
    the kernel allows it: where no mask tells the queries apart they become further queries of the shared head.
    """
    queries, groups = q.shape[1], q.shape[2] // k.shape[2]
    if q.numel() == 0 or k.shape[1] == 0:
        return q.new_zeros(*q.shape[:3], v.shape[3])
    if groups > 1 and not is_causal and (mask is None or queries == 1):
        rows = q.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        if mask is not None and mask.shape[1] > 1:
            mask = mask.squeeze(2).unflatten(1, (-1, groups))
        o = scaled_dot_product_attention(rows, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=scale)
        return o.unflatten(2, (groups, queries)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    o = scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=groups > 1,
    )
    return o.transpose(1, 2)


def written_mask(visibility: Visibility, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What `dense` takes as its mask: who is seen, and the bias where there is one."""
    seen = visibility.mask()[:, None]
    return seen if bias is None else bias.to(dtype).masked_fill(~seen, -torch.inf)


def by_rows(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    v: Float[Tensor, "batch keys kv_heads value_dim"],
    visibility: Visibility,
    bias: Bias | None,
    scale: float | None,
    height: int,
    width: int = 256,
) -> Float[Tensor, "batch queries heads value_dim"]:
    """Blocks of `height` queries one after the other, each with its part of the mask over the stretch of keys that it
    sees. For use without gradients: a backward pass would keep every part."""
    queries, keys = q.shape[1], k.shape[1]
    parts = []
    for number, line in enumerate(visibility.tiles(height, width)):
        rows = slice(number * height, min((number + 1) * height, queries))
        seen = [column for column, full in enumerate(line) if full is not False]
        columns = slice(min(seen) * width, min((max(seen) + 1) * width, keys)) if seen else slice(0, 0)
        mask = visibility.mask(rows, columns)[:, None]
        if bias is not None:
            mask = bias.tile(rows, columns).to(q.dtype).masked_fill(~mask, -torch.inf)
        parts.append(dense(q[:, rows], k[:, columns], v[:, columns], scale, mask))
    return torch.cat(parts, dim=1)
