"""Softmax attention to a part of the keys, with what is needed to join the parts.

    o_i = Σ_j p_ij v_j      LSE_i = log Σ_j e^{s_ij}      over the keys j of the part, s_ij = c q_i · k_j

Parts that share no key add up to attention over all keys: `flash_attention.merge`. And each part's share of the
gradients follows from O and LSE over all keys: p_ij = e^{s_ij − LSE_i}. On the processor this is PyTorch's fused
kernel, elsewhere (and where values have a width of their own) the products written out.

A query that sees nothing gives o = 0, LSE = −∞.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Queries = Float[Tensor, "batch queries heads head_dim"]
Keys = Float[Tensor, "batch keys heads head_dim"]
Values = Float[Tensor, "batch keys heads value_dim"]
Outputs = Float[Tensor, "batch queries heads value_dim"]
Levels = Float[Tensor, "batch queries heads"]
Mask = Bool[Tensor, "#batch #heads queries keys"]

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def partial_attention(
    q: Queries, k: Keys, v: Values, *, scale: float | None = None, mask: Mask | None = None, is_causal: bool = False
) -> tuple[Outputs, Levels]:
    """O and LSE over the given keys. O is differentiable; LSE is not.

    mask: True where a key is seen. is_causal: with as many queries as keys, sees those up to its own. scale: c,
    1/√head_dim by default.
    """
    if not q.numel() or not k.shape[1]:
        # Zero times the sums keeps the graph, so that gradients are zeros and not missing.
        nothing = q.sum() * 0 + k.sum() * 0 + v.sum() * 0
        o = nothing.to(v.dtype).expand(*q.shape[:3], v.shape[3])
        return o, q.new_full(q.shape[:3], -torch.inf, dtype=torch.promote_types(q.dtype, torch.float32))
    q, k, v = (_dense(x).transpose(1, 2) for x in (q, k, v))
    if fuses(q, v):
        o, lse = _fused(q, k, v, 0.0, is_causal, attn_mask=_added(mask, q.dtype), scale=scale)
    else:
        o, lse = _written(q, k, v, scale, mask, is_causal)
    if mask is not None:
        lse = lse.masked_fill(~mask.any(-1), -torch.inf)
    return o.transpose(1, 2), lse.detach().transpose(1, 2)


def partial_gradients(
    grad_o: Outputs,
    q: Queries,
    k: Keys,
    v: Values,
    o: Outputs,
    lse: Levels,
    *,
    scale: float | None = None,
    mask: Mask | None = None,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the given keys add to the gradients of q, k and v, where o and lse are over all keys that are seen.

    lse must be finite: 0 for queries that see nothing at all.
    """
    if not q.numel() or not k.shape[1]:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    grad_o, q, k, v, o = (_dense(x).transpose(1, 2) for x in (grad_o, q, k, v, o))
    lse = lse.transpose(1, 2)
    if fuses(q, v):
        added = _added(mask, q.dtype)
        gradients = _fused_gradients(grad_o, q, k, v, o, lse, 0.0, is_causal, attn_mask=added, scale=scale)
    else:
        gradients = _written_gradients(grad_o, q, k, v, o, lse, scale, mask, is_causal)
    d_q, d_k, d_v = (x.transpose(1, 2) for x in gradients)
    return d_q, d_k, d_v


def fuses(q: Tensor, v: Tensor) -> bool:
    """Whether the processor's kernel takes queries and values like these."""
    return q.device.type == "cpu" and q.shape[3] == v.shape[3]


def _dense(x: Tensor) -> Tensor:
    """The same numbers with those of a head side by side, as the kernel takes for granted."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _added(mask: Mask | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as the kernel takes it: what is added to the logits."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _logits(q: Tensor, k: Tensor, scale: float | None, mask: Mask | None, is_causal: bool) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    s = (q.to(dtype) * (q.shape[3] ** -0.5 if scale is None else scale)) @ k.to(dtype).mT
    if is_causal:
        mask = torch.ones(s.shape[2:], dtype=torch.bool, device=s.device).tril()
    return s if mask is None else s.masked_fill(~mask, -torch.inf)


def _written(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, mask: Mask | None, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """O and LSE with the logits written out."""
    s = _logits(q, k, scale, mask, is_causal)
    lse = s.logsumexp(-1)
    p = s.softmax(-1).masked_fill((lse == -torch.inf)[..., None], 0)
    return (p @ v.to(p.dtype)).to(v.dtype), lse


def _written_gradients(
    grad_o: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    scale: float | None,
    mask: Mask | None,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with the logits written out."""
    p = (_logits(q, k, scale, mask, is_causal) - lse[..., None]).exp()
    grad_o = grad_o.to(p.dtype)
    delta = (grad_o * o.to(p.dtype)).sum(-1, keepdim=True)
    d_s = (grad_o @ v.to(p.dtype).mT - delta) * p * (q.shape[3] ** -0.5 if scale is None else scale)
    d_q, d_k = d_s @ k.to(p.dtype), d_s.mT @ q.to(p.dtype)
    return d_q.to(q.dtype), d_k.to(k.dtype), (p.mT @ grad_o).to(v.dtype)
