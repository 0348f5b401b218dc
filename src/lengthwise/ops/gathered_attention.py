"""Softmax attention inside chosen sets: for every set of a head, chosen queries read chosen keys.

    o_i = Σ_{sets s with i} Σ_j p_sij v_j      p_sij = softmax over the keys j of s that i sees, of c q_i · k_j + b_sij

A query sees the keys of its set whose places lie between its `first` and its `last`: with the true places and
last_i = i this is causal attention, with first_i = i − w + 1 beside it a window, and with the beginning of a document
or of a cluster as first_i nothing before that. A query may be in several sets, or in none, and what its sets give is
combined:

    "sum"        as above; what attention gives where each query is in one set at most
    "average"    o_i / (m_i + 0.01), for a query in m_i sets: Roy et al. 2020, arXiv 2003.05997

A query in no set, and one that sees nothing, gives 0. Sets are taken a few at a time, gathered, attended and given up;
the backward pass gathers them again. So memory is O(L) beside the indices, whatever the sets' size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lengthwise.errors import InputError, unknown
from lengthwise.ops.backend import resolve

AT_ONCE = 2**19
"""Numbers of the mask of the sets taken at once: 2 MiB in float32, little enough to stay in the processor's cache."""

SMOOTHING = 0.01
"""What is added to the number of sets of a query before its sum is divided by it."""

WAYS = ("sum", "average")
"""How what a query reads in several sets is combined."""

NOWHERE = -1
"""The index of a place of a set in which nothing stands."""

FAR = torch.iinfo(torch.int32)

Queries = Float[Tensor, "batch queries heads head_dim"]
Keys = Float[Tensor, "batch keys kv_heads head_dim"]
Values = Float[Tensor, "batch keys kv_heads value_dim"]
Outputs = Float[Tensor, "batch queries heads value_dim"]
OfQueries = Int[Tensor, "batch heads sets chosen"]
OfKeys = Int[Tensor, "batch heads sets read"]
SetBias = Float[Tensor, "#batch #heads #sets chosen read"]


def gathered_attention_reference(
    q: Queries,
    k: Keys,
    v: Values,
    query_index: OfQueries,
    key_index: OfKeys,
    *,
    first: OfQueries | None = None,
    last: OfQueries | None = None,
    places: OfKeys | None = None,
    bias: SetBias | None = None,
    scale: float | None = None,
    combine: str = "sum",
) -> Outputs:
    """The definition: one query of one set after the other."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    places = key_index if places is None else places
    batch, heads, sets, chosen = query_index.shape
    total = [[[q.new_zeros(v.shape[3]) for _ in range(heads)] for _ in range(q.shape[1])] for _ in range(batch)]
    count = q.new_zeros(*q.shape[:3], 1)
    if bias is not None:
        bias = bias.expand(batch, heads, sets, chosen, key_index.shape[3])
    for at in torch.cartesian_prod(*map(torch.arange, (batch, heads, sets, chosen))).tolist():
        b, h, s, a = at
        i = int(query_index[b, h, s, a])
        if i == NOWHERE:
            continue
        count[b, i, h] += 1
        seen = key_index[b, h, s] != NOWHERE
        seen &= places[b, h, s] >= first[b, h, s, a] if first is not None else True
        seen &= places[b, h, s] <= last[b, h, s, a] if last is not None else True
        if not seen.any():
            continue
        j, shared = key_index[b, h, s][seen], h * k.shape[2] // heads
        logits = scale * k[b, j, shared] @ q[b, i, h]
        logits = logits if bias is None else logits + bias[b, h, s, a][seen]
        total[b][i][h] = total[b][i][h] + logits.softmax(0) @ v[b, j, shared]
    rows = [x for row in total for token in row for x in token]
    o = torch.stack(rows).view(*q.shape[:3], -1) if rows else q.new_zeros(*q.shape[:3], v.shape[3])
    return o / (count + SMOOTHING) if combine == "average" else o


def gathered_attention(
    q: Queries,
    k: Keys,
    v: Values,
    query_index: OfQueries,
    key_index: OfKeys,
    *,
    first: OfQueries | None = None,
    last: OfQueries | None = None,
    places: OfKeys | None = None,
    bias: SetBias | None = None,
    scale: float | None = None,
    combine: str = "sum",
    backend: str = "auto",
) -> Outputs:
    """o for every query.

    query_index, key_index: which queries and keys are in each set, in any order; −1 where nothing stands.
    places: those of the keys of each set, their indices by default. first, last: the least and the greatest place that
    each query sees; None is no limit. bias: b. scale: c, 1/√head_dim by default. Query head h uses key-value head
    ⌊h · kv_heads / heads⌋. No gradient flows through the choice.

    backend: "torch" or "reference". Raises InputError for heads that don't divide and another way to combine.
    """
    if q.shape[2] % k.shape[2]:
        raise InputError(f"kv_heads must divide heads: got kv_heads={k.shape[2]} and heads={q.shape[2]}")
    if combine not in WAYS:
        raise unknown("way to combine", combine, WAYS)
    form = resolve(backend, ("torch", "reference"), q, k, v)
    where: dict[str, Any] = {"first": first, "last": last, "places": places, "bias": bias, "scale": scale}
    if form == "reference":
        return gathered_attention_reference(q, k, v, query_index, key_index, **where, combine=combine)
    if not query_index.numel() or not key_index.numel():
        return q.new_zeros(*q.shape[:3], v.shape[3])
    sets = Sets.of(q, k, query_index, key_index, first, last, places)
    added = q.new_zeros(0) if bias is None else bias
    scale = q.shape[3] ** -0.5 if scale is None else scale
    shape = tuple(q.shape[:3])
    q, k, v = (x.reshape(-1, x.shape[3]) for x in (q, k, v))
    plain = torch.compiler.is_compiling()
    o = attend(q, k, v, added, sets, slice(None), scale) if plain else _Gathered.apply(q, k, v, added, sets, scale)
    return scatter(o, sets, combine, shape)


@dataclass(frozen=True)
class Sets:
    """The sets of all rows and heads, one after the other.

    queries, keys: rows of q and k flattened over batch, length and heads; a query that isn't there is behind the last
    row. first, last, places: as in `gathered_attention`, int32; the place of a key that isn't there is out of sight.
    shape: (batch, heads, sets).
    """

    queries: Int[Tensor, "all chosen"]
    keys: Int[Tensor, "all read"]
    first: Int[Tensor, "all limited"] | None
    last: Int[Tensor, "all chosen"] | None
    places: Int[Tensor, "all read"]
    shape: tuple[int, int, int]

    @staticmethod
    def of(
        q: Queries,
        k: Keys,
        query_index: OfQueries,
        key_index: OfKeys,
        first: OfQueries | None,
        last: OfQueries | None,
        places: OfKeys | None,
    ) -> Sets:
        """The sets of one call."""
        batch, heads, count = query_index.shape[:3]
        row = torch.arange(batch, device=q.device)[:, None, None, None]
        head = torch.arange(heads, device=q.device)[:, None, None]
        queries = (row * q.shape[1] + query_index) * heads + head
        queries = torch.where(query_index < 0, batch * q.shape[1] * heads, queries)
        keys = (row * k.shape[1] + key_index.clamp_min(0)) * k.shape[2] + head * k.shape[2] // heads
        hidden = FAR.min if last is None else FAR.max
        seen = torch.where(key_index < 0, hidden, key_index if places is None else places)
        if first is None and last is None:
            first = torch.full_like(query_index[..., :1], FAR.min + 1)
        first, last = (None if limit is None else limit.flatten(0, 2).int() for limit in (first, last))
        shape = (batch, heads, count)
        return Sets(queries.flatten(0, 2), keys.flatten(0, 2), first, last, seen.flatten(0, 2).int(), shape)

    def hidden(self, part: slice) -> Tensor:
        """True where a query of these sets doesn't see a key, [sets, chosen or 1, read]."""
        places = self.places[part, None]
        before = None if self.first is None else places < self.first[part, :, None]
        if self.last is None:
            return before  # type: ignore[return-value]  # one of the two is there
        after = places > self.last[part, :, None]
        return after if before is None else after.logical_or_(before)

    def which(self, part: slice, bias: Tensor) -> tuple[Tensor, ...]:
        """The indices of these sets' bias in its first three dimensions, each of which may be 1."""
        number = torch.arange(len(self.keys), device=bias.device)[part]
        _, heads, sets = self.shape
        at = (number // (heads * sets), number // sets % heads, number % sets)
        return tuple(torch.zeros_like(i) if size == 1 else i for i, size in zip(at, bias.shape, strict=False))


def attend(
    q: Float[Tensor, "rows head_dim"],
    k: Float[Tensor, "key_rows head_dim"],
    v: Float[Tensor, "key_rows value_dim"],
    bias: Tensor,
    sets: Sets,
    part: slice,
    scale: float,
) -> Float[Tensor, "part chosen value_dim"]:
    """What the queries of some sets read."""
    own = sets.queries[part].clamp_max(max(q.shape[0] - 1, 0))
    added = bias[sets.which(part, bias)] if bias.numel() else None
    return inside(take(q, own), take(k, sets.keys[part]), take(v, sets.keys[part]), added, sets.hidden(part), scale)


def take(x: Float[Tensor, "rows dim"], index: Int[Tensor, "sets size"]) -> Float[Tensor, "sets size dim"]:
    """The rows of each set."""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape)


def inside(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, hidden: Tensor, scale: float) -> Tensor:
    """Attention of gathered queries to the gathered keys of their set."""
    if bias is None:
        mask = q.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    else:
        mask = bias.to(q.dtype).masked_fill(hidden, -torch.inf)
    q, k, v, mask = (x.unsqueeze(1) for x in (q, k, v, mask))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).squeeze(1)


def scatter(o: Float[Tensor, "all chosen value_dim"], sets: Sets, combine: str, shape: tuple[int, ...]) -> Outputs:
    """Each query's outputs, summed over its sets or averaged."""
    rows, into = shape[0] * shape[1] * shape[2], sets.queries.flatten()
    total = o.new_zeros(rows + 1, o.shape[2]).index_add(0, into, o.flatten(0, 1))[:rows]
    if combine == "average":
        count = o.new_zeros(rows + 1).index_add(0, into, o.new_ones(len(into)))[:rows]
        total = total / (count[:, None] + SMOOTHING)
    return total.unflatten(0, shape)


class _Gathered(torch.autograd.Function):
    """`attend`, some sets at a time; what was gathered is gathered again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, sets: Sets, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        ctx.sets, ctx.scale = sets, scale
        o = q.new_empty(*sets.queries.shape, v.shape[1])
        for part in parts(sets):
            o[part] = attend(q, k, v, bias, sets, part, scale)
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors, sets = ctx.saved_tensors, ctx.sets
        wanted = ctx.needs_input_grad
        slopes = [torch.zeros_like(t) for t in tensors]
        for part in parts(sets):
            own, keys = sets.queries[part].clamp_max(max(tensors[0].shape[0] - 1, 0)), sets.keys[part]
            q, k, v = (take(t, index).requires_grad_() for t, index in zip(tensors, (own, keys, keys), strict=False))
            which = sets.which(part, tensors[3]) if tensors[3].numel() else None
            added = None if which is None else tensors[3][which].requires_grad_(wanted[3])
            with torch.enable_grad():
                o = inside(q, k, v, added, sets.hidden(part), ctx.scale)
            asked = [q, k, v] if added is None or not wanted[3] else [q, k, v, added]
            found = torch.autograd.grad(o, asked, grads[0][part])
            for slope, index, grad in zip(slopes, (own, keys, keys), found, strict=False):
                slope.index_add_(0, index.flatten(), grad.flatten(0, 1))
            if len(found) == 4 and which is not None:
                slopes[3].index_put_(which, found[3], accumulate=True)
        return (*(slope if want else None for slope, want in zip(slopes, wanted, strict=False)), None, None)


def parts(sets: Sets) -> list[slice]:
    """Runs of sets whose masks together have about `AT_ONCE` numbers."""
    count = max(1, AT_ONCE // max(1, sets.queries.shape[1] * sets.keys.shape[1]))
    return [slice(begin, begin + count) for begin in range(0, len(sets.queries), count)]
