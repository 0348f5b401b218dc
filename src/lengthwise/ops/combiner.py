"""Combiner: attention to some tokens one by one and to all others by summaries of regions, in one softmax.

    y_i = Σ_{j ∈ O_i} p_ij v_j + Σ_r p_ir v̄_r          (p_ij, p_ir) = softmax of q_i · k_j / √d and q_i · k̄_r / √d
    k̄_r = max_{j ∈ r} k_j      q̄_r = max_{j ∈ r} q_j      v̄_r = Σ_{j ∈ r} softmax(q̄_r · k_j / √d) v_j

max: of each channel alone. O_i and the regions of i cover what i may see. With segments of w tokens, the place of i is
(b, l), b = ⌊i / w⌋ and l = i mod w, and of the forms, all causal,

    fixed        O_i: its own segment up to i; regions: every earlier segment
    logsparse    O_i: i alone; regions: for every bit e of i that is 1, the block of 2^e tokens before that of i
    axial        O_i: its own segment up to i; regions: every earlier segment u, from the point of view of (u, l): v̄ is
                 what q_(u,l) reads there, k̄ a key of that place
    mixture      O_i: its own segment up to i, and place l of every earlier segment; regions: each other place of all
                 earlier segments; what is left of l, and what is right of l, of each earlier segment

fixed and mixture also read both ways. Then O_i is the whole segment, with mixture place l of all others too, and there
are regions of later segments as of earlier ones, each by itself. mixture covers what lies in other segments twice, but
for place l. The logarithm of a region's size isn't added: the softmax learns what a summary weighs.
Ren et al. 2021, arXiv 2107.05768.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lengthwise.errors import InputError, unknown
from lengthwise.ops.dense_attention import dense

FORMS = ("fixed", "logsparse", "axial", "mixture")
BOTH_WAYS = ("fixed", "mixture")

Tokens = Float[Tensor, "batch length heads head_dim"]


@dataclass(frozen=True)
class Region:
    """Tokens that are summarised together; from the point of view of one of them, where `point` names it."""

    tokens: range
    point: int | None = None


def partition(form: str, i: int, size: int, length: int, causal: bool = True) -> tuple[list[int], list[Region]]:
    """O_i and the regions of token i, with segments of `size` tokens in a document of `length`."""
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    if not causal and form not in BOTH_WAYS:
        raise InputError(f"form {form} is causal; {' and '.join(BOTH_WAYS)} read both ways")
    segment, place = divmod(i, size)
    begin = segment * size
    own = list(range(begin, i + 1 if causal else min(begin + size, length)))
    if form == "fixed":
        starts = range(0, begin if causal else length, size)
        return own, [Region(range(at, min(at + size, length))) for at in starts if at != begin]
    if form == "logsparse":
        blocks = [(i >> e << e, 2**e) for e in range(i.bit_length()) if i >> e & 1]
        return [i], [Region(range(end - tokens, end)) for end, tokens in blocks]
    if form == "axial":
        return own, [Region(range(at, at + size), at + place) for at in range(0, begin, size)]
    later = length if not causal else begin
    rows = [at for at in range(0, later, size) if at != begin]
    direct = own + [at + place for at in rows if at + place < length]
    columns = [
        Region(range(first + other, end, size))
        for first, end in ((0, begin), (begin + size, later))
        for other in range(size)
        if other != place
    ]
    left = [Region(range(at, min(at + place, length))) for at in rows]
    right = [Region(range(at + place + 1, min(at + size, length))) for at in rows]
    return direct, [region for region in columns + left + right if region.tokens]


SummaryKey = Callable[[Tensor, Tensor, int], Tensor]
"""k̄ of a region seen from a point: from v̄, [batch, heads, dim], the weighted keys, likewise, and the point."""


def combiner_reference(
    q: Tokens,
    k: Tokens,
    v: Tokens,
    form: str,
    size: int,
    *,
    causal: bool = True,
    summary_key: SummaryKey | None = None,
) -> Tokens:
    """The definition, one token after the other. summary_key: of the form axial; the point's own key by default."""
    scale, length, outputs = q.shape[3] ** -0.5, q.shape[1], []
    for i in range(length):
        direct, regions = partition(form, i, size, length, causal)
        keys, values = [k[:, j] for j in direct], [v[:, j] for j in direct]
        for region in regions:
            inside, read = k[:, region.tokens], v[:, region.tokens]
            query = q[:, region.tokens].amax(1) if region.point is None else q[:, region.point]
            p = (torch.einsum("bhd,bjhd->bjh", query, inside) * scale).softmax(1)
            summary, weighted = (torch.einsum("bjh,bjhd->bhd", p, x) for x in (read, inside))
            values.append(summary)
            if region.point is None:
                keys.append(inside.amax(1))
            else:
                own = k[:, region.point]
                keys.append(own if summary_key is None else summary_key(summary, weighted, region.point))
        p = (torch.einsum("bhd,bjhd->bjh", q[:, i], torch.stack(keys, 1)) * scale).softmax(1)
        outputs.append(torch.einsum("bjh,bjhd->bhd", p, torch.stack(values, 1)))
    return torch.stack(outputs, 1)


def summarise(
    q: Float[Tensor, "rows some heads head_dim"],
    k: Float[Tensor, "rows tokens heads head_dim"],
    v: Float[Tensor, "rows tokens heads head_dim"],
) -> tuple[Float[Tensor, "rows heads head_dim"], Float[Tensor, "rows heads head_dim"]]:
    """k̄ and v̄ of the regions that the rows are. q: of each token, or the largest of several of them."""
    return k.amax(1), dense(q.amax(1, keepdim=True), k, v)[:, 0]


def running(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """k̄ and v̄ of all tokens of the rows up to each, [rows, tokens, heads, dim]."""
    return k.cummax(1).values, dense(q.cummax(1).values, k, v, is_causal=True)


def others(asked: int, size: int, device: torch.device, place: int = 0) -> Bool[Tensor, "1 1 asked size"]:
    """Whether each of `asked` places from `place` on is another than each of `size` places."""
    places = torch.arange(place, place + asked, device=device)
    return (places[:, None] != torch.arange(size, device=device))[None, None]
