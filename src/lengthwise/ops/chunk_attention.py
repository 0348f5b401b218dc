"""Softmax attention inside chunks of c tokens, which don't see each other: O(L · c).

    o_i = Σ_j p_ij v_j      p_ij = softmax over the keys j of i's chunk, up to i if causal, of  s q_i · k_j + b_ij

Queries are the last of the keys. `slots` says which chunk a key is in and where: number · c + place. Without slots the
first key begins a chunk, and keys follow each other.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lengthwise.ops.dense_attention import dense

Queries = Float[Tensor, "batch queries heads head_dim"]
Keys = Float[Tensor, "batch keys kv_heads head_dim"]
Values = Float[Tensor, "batch keys kv_heads value_dim"]
Outputs = Float[Tensor, "batch queries heads value_dim"]
Slots = Int[Tensor, "batch keys"]
Bias = Float[Tensor, "heads chunk chunk"]


def chunk_attention_reference(
    q: Queries,
    k: Keys,
    v: Values,
    chunk: int,
    *,
    slots: Slots | None = None,
    scale: float | None = None,
    bias: Bias | None = None,
    causal: bool = True,
) -> Outputs:
    """The definition: the matrix of logits written out, masked and normalised."""
    slots = torch.arange(k.shape[1], device=k.device).expand(k.shape[:2]) if slots is None else slots
    own = slots[:, k.shape[1] - q.shape[1] :]
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    logits = torch.einsum("bihd,bjhd->bhij", q, k) * (q.shape[3] ** -0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + bias[:, (own % chunk)[:, :, None], (slots % chunk)[:, None]].movedim(0, 1)
    seen = (own.div(chunk, rounding_mode="floor")[:, :, None] == slots.div(chunk, rounding_mode="floor")[:, None]) & (
        slots >= 0
    )[:, None]
    if causal:
        seen = seen & (slots[:, None] <= own[:, :, None])
    p = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1).masked_fill(~seen[:, None], 0)
    return torch.einsum("bhij,bjhd->bihd", p, v)


def chunk_attention(
    q: Queries,
    k: Keys,
    v: Values,
    chunk: int,
    *,
    slots: Slots | None = None,
    scale: float | None = None,
    bias: Bias | None = None,
    causal: bool = True,
) -> Outputs:
    """o for every query.

    chunk: c. slots: negative where there is no token: such a key isn't seen, and such a query gives 0. No two keys of a
    row have the same one; each chunk is filled from its beginning. scale: s, 1/√head_dim by default. bias: b by the
    places of query and key in their chunk, the same in all chunks. causal: sees nothing that comes later.

    Values may be wider than keys. Memory O(L · c); O(L) without a bias where values are as wide as keys.
    """
    if slots is not None:
        return _gathered(q, k, v, chunk, slots, scale, bias, causal)
    keys = k.shape[1]
    past = keys - q.shape[1]
    begin = past // chunk * chunk  # of the chunk that the first query is in
    head = min(begin + chunk, keys) if past > begin else begin
    end = head + (keys - head) // chunk * chunk  # of the last whole chunk
    parts = []
    for first, last, count in ((begin, head, 1), (head, end, (end - head) // chunk), (end, keys, 1)):
        if last > max(first, past):
            rows = (q[:, max(first, past) - past : last - past], k[:, first:last], v[:, first:last])
            side_by_side = (x.unflatten(1, (count, -1)).flatten(0, 1) for x in rows)
            o = _inside(*side_by_side, scale, bias, causal)
            parts.append(o.unflatten(0, (-1, count)).flatten(1, 2))
    if not parts:
        return q.new_zeros(*q.shape[:3], v.shape[3])
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _inside(
    q: Queries,
    k: Keys,
    v: Values,
    scale: float | None,
    bias: Bias | None,
    causal: bool,
    seen: Bool[Tensor, "batch 1 1 keys"] | None = None,
) -> Outputs:
    """One chunk in each row, the queries the last of its keys. seen: where there are keys, if not everywhere."""
    queries, keys = q.shape[1], k.shape[1]
    place = torch.arange(keys, device=q.device)
    last = place[keys - queries :, None]
    plain = bias is None and seen is None and queries in (1, keys)
    if causal and not plain:
        before = (place <= last)[None, None]
        seen = before if seen is None else before & seen
    mask = seen
    if bias is not None:
        added = bias[None, :, keys - queries : keys, :keys].to(q.dtype)
        mask = added if seen is None else added.masked_fill(~seen, -torch.inf)
    return dense(q, k, v, scale, mask, is_causal=causal and plain and queries > 1)


def _gathered(
    q: Queries, k: Keys, v: Values, chunk: int, slots: Slots, scale: float | None, bias: Bias | None, causal: bool
) -> Outputs:
    """Every token put at its place in its chunk, each chunk a row, and what comes of it put back."""
    batch, keys = slots.shape
    count = int(slots.max()) // chunk + 1 if slots.numel() else 0
    if count <= 0:
        return q.new_zeros(*q.shape[:3], v.shape[3])
    nowhere = count * chunk
    at = torch.where(slots < 0, nowhere, slots)
    source = at.new_full((batch, nowhere + 1), keys)
    source.scatter_(1, at, torch.arange(keys, device=at.device).expand_as(at))
    source, row = source[:, :nowhere], torch.arange(batch, device=at.device)[:, None]

    def placed(x: Tensor, missing: int = 0) -> Tensor:
        rows = F.pad(x, (0, 0, 0, 0, missing, 1))[row, source]
        return rows.unflatten(1, (count, chunk)).flatten(0, 1)

    seen = None
    if not causal:
        filled = (source < keys).unflatten(1, (count, chunk)).flatten(0, 1)
        # What is empty is read by nobody, and a softmax over nothing would be no number.
        seen = (filled | ~filled.any(1, keepdim=True))[:, None, None]
    o = _inside(placed(q, keys - q.shape[1]), placed(k), placed(v), scale, bias, causal, seen)
    o = F.pad(o.unflatten(0, (batch, count)).flatten(1, 2), (0, 0, 0, 0, 0, 1))
    return o[row, at[:, keys - q.shape[1] :]]
