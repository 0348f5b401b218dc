"""Dilated attention: softmax attention in segments of several lengths, the longer ones sampled the more sparsely.

    branch i cuts the sequence into segments of w_i tokens; head j takes part with every r_i-th token of a segment, from
    its offset s on:     t with (t mod w_i) mod r_i = s_ij          s_ij = ⌊j / ⌈heads / r_i⌉⌋
    O_i = softmax(c Q Kᵀ) V among the tokens of a segment that the head takes part with, up to the query if causal
    LSE_i = log of the denominator, −∞ where a token takes no part
    o = Σ_i α_i O_i          α_i = exp(LSE_i) / Σ_m exp(LSE_m)

which is one softmax over the keys of all branches, a key counted once for each branch that shows it. Heads of one
offset stand side by side, as in the authors' code; by the paper head j has the offset j mod r, a permutation of heads.
One branch has r = 1, so that every token sees itself. A last segment that isn't full has fewer keys, and none that
stand for tokens that aren't there.

The authors' code gives α no gradient.

Costs O(L Σ_i w_i / r_i²) and memory O(L): tokens are read where they are, and nothing of [L, L] is held.
Ding et al. 2023, arXiv 2307.02486.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lengthwise.errors import InputError, unknown
from lengthwise.ops.backend import resolve
from lengthwise.ops.joint_attention import Keys, Part, joint_attention

Queries = Float[Tensor, "batch length heads head_dim"]
Values = Float[Tensor, "batch length heads value_dim"]
Past = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of one branch, what the open segment holds: keys and values [batch, rows, heads, dim], of which row m has for each
head the token m r + s; and those of the row that is begun, [batch, heads so far, dim]."""

WEIGHTS = ("detached", "differentiable")


@dataclass(frozen=True)
class Branch:
    """Segments of w tokens, of which each head samples every r-th. Raises InputError for less than one."""

    segment: int
    dilation: int

    def __post_init__(self) -> None:
        for name in ("segment", "dilation"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"the {name} of a branch must be at least 1, got {value}")

    def heads(self, heads: int) -> list[slice]:
        """The heads of each offset."""
        each = -(-heads // self.dilation)
        return [slice(begin, min(begin + each, heads)) for begin in range(0, heads, each)]

    def begun(self, place: int, heads: int) -> int:
        """How many heads have met their token of the row in which the next token is number `place` of its segment."""
        return min(place % self.dilation * -(-heads // self.dilation), heads)


def branches_of(segments: Sequence[int], dilations: Sequence[int]) -> tuple[Branch, ...]:
    """The branches. Raises InputError where there isn't one dilation for each segment, or none of them is 1."""
    if len(segments) != len(dilations) or not segments:
        raise InputError(f"give as many dilations as segments, got {list(segments)} and {list(dilations)}")
    if 1 not in dilations:
        raise InputError(f"one dilation must be 1, so that every token sees itself, got {list(dilations)}")
    return tuple(Branch(*pair) for pair in zip(segments, dilations, strict=True))


@dataclass(frozen=True)
class Sampled:
    """The view of the tokens of one offset of a branch, in segments of equal length.

    tokens: all tokens of these segments, count: how many segments. first: the first, in each, that is sampled.
    """

    tokens: slice
    count: int
    first: int
    dilation: int
    heads: slice

    def __call__(self, x: Float[Tensor, "batch length heads ..."]) -> Float[Tensor, "batch count sampled some ..."]:
        """What is sampled of a tensor."""
        return x[:, self.tokens, self.heads].unflatten(1, (self.count, -1))[:, :, self.first :: self.dilation]


@dataclass(frozen=True)
class OfHeads:
    """The view of kept keys in some heads, as one row."""

    heads: slice

    def __call__(self, x: Float[Tensor, "batch rows heads dim"]) -> Float[Tensor, "batch 1 rows some dim"]:
        """What is seen of a tensor."""
        return x[:, None, :, self.heads]


def parts_of(
    branches: Sequence[Branch], start: int, length: int, heads: int, causal: bool
) -> tuple[list[Part], list[tuple[int, bool]]]:
    """All that `length` tokens take part in which follow `start` tokens of their document.

    A branch without dilation comes first. Pair 0 is their own keys and values; the others, which come second, are what
    branches have kept: the number of the branch, and whether it is the begun row or those before.
    """
    found: list[Part] = []
    kept: dict[tuple[int, bool], int] = {}
    for number, branch in sorted(enumerate(branches), key=lambda pair: pair[1].dilation):
        w, r = branch.segment, branch.dilation
        place = start % w
        head = min(w - place, length) if place else 0
        end = head + (length - head) // w * w
        for begin, stop, count in ((0, head, 1), (head, end, (end - head) // w), (end, length, 1)):
            before = place if begin < head else 0
            for offset, group in enumerate(branch.heads(heads)) if stop > begin else ():
                first = (offset - before) % r
                if first >= (stop - begin) // count:
                    continue
                view = Sampled(slice(begin, stop), count, first, r, group)
                keys = [Keys(0, view, causal)]
                for begun, some in ((False, before >= r), (True, offset < before % r)):
                    if some:
                        keys.append(Keys(kept.setdefault((number, begun), len(kept) + 1), OfHeads(group)))
                found.append(Part(view, tuple(keys)))
    return found, list(kept)


def dilated_attention_reference(
    q: Queries,
    k: Queries,
    v: Values,
    branches: Sequence[Branch],
    *,
    start: int = 0,
    past: Sequence[Past] = (),
    causal: bool = True,
    scale: float | None = None,
    weights: str = "detached",
) -> Values:
    """The definition: for each branch the matrix of logits written out, masked and normalised."""
    length, heads = q.shape[1:3]
    scale = q.shape[3] ** -0.5 if scale is None else scale
    outputs, levels = [], []
    for number, branch in enumerate(branches):
        before = start % branch.segment
        place = torch.arange(before + length, device=q.device)
        offset = torch.arange(heads, device=q.device) // -(-heads // branch.dilation)
        sampled = place % branch.segment % branch.dilation == offset[:, None]
        segment = place // branch.segment
        seen = (segment[before:, None] == segment) & sampled[:, before:, None] & sampled[:, None]
        if causal:
            seen = seen & (place <= place[before:, None])
        keys, values = k, v
        if before:
            keys, values = (_whole(new, past[number][i::2], before, offset, branch) for i, new in enumerate((k, v)))
        logits = torch.einsum("bihd,bjhd->bhij", q * scale, keys).masked_fill(~seen, -torch.inf)
        p = logits.softmax(-1).masked_fill(~seen, 0)
        outputs.append(torch.einsum("bhij,bjhd->bihd", p.to(v.dtype), values))
        levels.append(logits.logsumexp(-1).transpose(1, 2))
    level = torch.stack(levels)
    alpha = (level.detach() if weights == "detached" else level).softmax(0)
    return (torch.stack(outputs) * alpha[..., None]).sum(0).to(v.dtype)


def _whole(new: Tensor, past: Sequence[Tensor], before: int, offset: Tensor, branch: Branch) -> Tensor:
    """Keys or values of a whole segment from those that were sampled of its first `before` tokens; 0 for the others."""
    rows, begun = past
    begun = functional.pad(begun, (0, 0, 0, new.shape[2] - begun.shape[1]))
    rows = torch.cat([rows, begun[:, None]], 1).to(new.dtype)
    place = torch.arange(before, device=new.device)
    taken = rows[:, place // branch.dilation] * (place[:, None] % branch.dilation == offset)[None, :, :, None]
    return torch.cat([taken, new], 1)


def dilated_attention(
    q: Queries,
    k: Queries,
    v: Values,
    branches: Sequence[Branch],
    *,
    start: int = 0,
    past: Sequence[Past] = (),
    causal: bool = True,
    scale: float | None = None,
    weights: str = "detached",
    backend: str = "auto",
) -> Values:
    """o for every token of rows that are one document each.

    branches: (w_i, r_i), see `branches_of`. start: how many tokens of the documents came before, and past: what each
    branch holds of them. causal: sees nothing that comes later. scale: c, 1/√head_dim by default.
    weights: "detached", or "differentiable" for a gradient through α as well.

    Raises InputError for other weights, and where the past of `start` tokens isn't given.
    """
    if weights not in WEIGHTS:
        raise unknown("way to take weights", weights, WEIGHTS)
    if start and len(past) != len(branches):
        raise InputError(f"{start} tokens came before, so each of {len(branches)} branches needs its past")
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if resolve(backend, ("torch", "reference"), q, k, v) == "reference":
        return dilated_attention_reference(
            q, k, v, branches, start=start, past=past, causal=causal, scale=scale, weights=weights
        )
    if not q.shape[1]:
        return torch.zeros_like(v)
    parts, kept = parts_of(branches, start, q.shape[1], q.shape[2], causal)
    undilated = next(branch for branch in branches if branch.dilation == 1)
    first = len(parts_of([undilated], start, q.shape[1], q.shape[2], causal)[0])
    pairs = [(k, v)]
    for number, begun in kept:
        keys, values, begun_keys, begun_values = past[number]
        pairs.append((begun_keys[:, None], begun_values[:, None]) if begun else (keys, values))
    constant = weights == "detached" and len(branches) > 1
    return joint_attention(q, pairs, parts, first=first, scale=scale, constant=constant)
