"""Softmax attention inside chunks of c tokens, which don't see each other: O(L · c).

    o_i = Σ_j p_ij v_j      p_ij = softmax over the keys j of i's chunk, up to i if causal, of  s q_i · k_j + b_ij

Queries are the last of the keys. `slots` says which chunk a key is in and where: number · c + place. Without slots the
first key begins a chunk, and keys follow each other.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.ops.dense_attention import dense
from lengthwise.ops.document_attention import document_attention, group_documents
from lengthwise.ops.flash_attention import flash_attention
from lengthwise.ops.patterns import causal as up_to_itself
from lengthwise.ops.patterns import full
from lengthwise.ops.visibility import aligned

Queries = Float[Tensor, "batch queries heads head_dim"]
Keys = Float[Tensor, "batch keys kv_heads head_dim"]
Values = Float[Tensor, "batch keys kv_heads value_dim"]
Outputs = Float[Tensor, "batch queries heads value_dim"]
Slots = Int[Tensor, "batch keys"]
Bias = Float[Tensor, "heads chunk chunk"]

WIDE = 256
"""Keys beyond which tiles are faster where values are wider than keys: then the framework writes all logits out."""


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
    row have the same one; each chunk is one run of its row, filled from its beginning. scale: s, 1/√head_dim by
    default. bias: b by the places of query and key in their chunk, the same in all chunks. causal: sees nothing that
    comes later.

    Values may be wider than keys. Memory O(L); O(L · c) with a bias. Raises InputError for chunks that aren't runs.
    """
    if slots is not None:
        return _by_chunk(q, k, v, chunk, slots, scale, bias, causal)
    keys = k.shape[1]
    past = keys - q.shape[1]
    begin = past // chunk * chunk  # of the chunk that the first query is in
    head = min(begin + chunk, keys) if past > begin else begin
    end = head + (keys - head) // chunk * chunk  # of the last whole chunk
    parts = []
    for first, last, count in ((begin, head, 1), (head, end, (end - head) // chunk), (end, keys, 1)):
        if last > max(first, past):
            rows = (q[:, max(first, past) - past : last - past], k[:, first:last], v[:, first:last])
            queries, near, read = (x.unflatten(1, (count, -1)).flatten(0, 1) for x in rows)
            o = _inside(queries, near, read, scale, bias, causal)
            parts.append(o.unflatten(0, (-1, count)).flatten(1, 2))
    if not parts:
        return q.new_zeros(*q.shape[:3], v.shape[3])
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _inside(q: Queries, k: Keys, v: Values, scale: float | None, bias: Bias | None, causal: bool) -> Outputs:
    """One chunk in each row, the queries the last of its keys."""
    queries, keys = q.shape[1], k.shape[1]
    wide = bias is None and v.shape[3] != q.shape[3] and queries > 1 and keys > WIDE
    if wide and not torch.compiler.is_compiling():
        return flash_attention(q, k, v, pattern=up_to_itself() if causal else full(), scale=scale)[0]
    plain = bias is None and queries in (1, keys)
    seen = None
    if causal and not plain:
        place = torch.arange(keys, device=q.device)
        seen = (place <= place[keys - queries :, None])[None, None]
    mask = seen
    if bias is not None:
        added = bias[None, :, keys - queries : keys, :keys].to(q.dtype)
        mask = added if seen is None else added.masked_fill(~seen, -torch.inf)
    return dense(q, k, v, scale, mask, is_causal=causal and plain and queries > 1)


def _by_chunk(
    q: Queries, k: Keys, v: Values, chunk: int, slots: Slots, scale: float | None, bias: Bias | None, causal: bool
) -> Outputs:
    """Chunks of equal length side by side, each token without a place alone."""
    own = slots[:, k.shape[1] - q.shape[1] :]
    if own.numel() == 0:
        return q.new_zeros(*q.shape[:3], v.shape[3])
    alone = torch.arange(-slots.shape[1], 0, device=slots.device)
    number = torch.where(slots < 0, alone, slots.div(chunk, rounding_mode="floor"))
    queries, keys = own.shape[1], slots.shape[1]
    visibility = aligned(up_to_itself(), queries, keys, number[:, keys - queries :], number)
    groups = group_documents(visibility, slots.shape[0])
    if groups is None:
        raise InputError("the slots of a chunk must be one run of their row")
    o = document_attention(q, k, v, groups, partial(_inside, scale=scale, bias=bias, causal=causal))
    return o.masked_fill((own < 0)[..., None, None], 0)
