"""Softmax attention of every query to every key given to it, by PyTorch's fused kernel."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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
