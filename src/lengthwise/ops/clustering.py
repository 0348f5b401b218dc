"""Clusters of tokens by content: the nearest centroid of each, the members of each, and centroids learned on the way.

    c_i = argmin_c ‖z_i − μ_c‖²                                       `nearest`
    S_c = the w tokens with the least ‖z_i − μ_c‖², in their order    `closest`

Every head has its own k centroids, which learn as moving averages over steps of training (λ near 1):

    n_c = Σ_i [c_i = c]         s_c = Σ_i [c_i = c] z_i
    N_c ← λ N_c + (1 − λ) n_c      M_c ← λ M_c + (1 − λ) s_c
    μ_c ← M_c / N'_c               N'_c = (N_c + ε) / (Σ N + k ε) · Σ N

Roy et al. 2020, arXiv 2003.05997; van den Oord et al. 2017, arXiv 1711.00937, for the averages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lengthwise.ops.gathered_attention import NOWHERE
from lengthwise.ops.visibility import run_starts

BLOCK = 128
"""Queries of a set of neighbours: below, the keys of a set are mostly those of its neighbour sets; above, a query's set
has more keys than it sees."""

EPS = 1e-5
"""ε, what keeps a centroid that nothing is nearest to finite."""

Points = Float[Tensor, "batch length heads dim"]
Centroids = Float[Tensor, "heads clusters dim"]
Numbers = Int[Tensor, "batch length heads"]


def affinities(z: Points, centroids: Centroids) -> Float[Tensor, "batch length heads clusters"]:
    """−‖z − μ_c‖² / 2."""
    sizes = z.square().sum(-1, keepdim=True) + centroids.square().sum(-1)
    return torch.einsum("blhd,hkd->blhk", z, centroids) - sizes / 2


def nearest(z: Points, centroids: Centroids) -> Numbers:
    """The number of the nearest centroid of each token."""
    return affinities(z, centroids).argmax(-1)


def closest(z: Points, centroids: Centroids, count: int) -> Int[Tensor, "batch heads clusters count"]:
    """The `count` tokens nearest to each centroid, in their order."""
    return affinities(z, centroids).topk(count, dim=1).indices.permute(0, 2, 3, 1).sort(-1).values


@dataclass(frozen=True)
class Neighbours:
    """Index sets in which every token sees the last tokens of its group, as `gathered_attention` takes them.

    index: the tokens in order of their group. The others count places in that order.
    """

    index: Int[Tensor, "batch heads sets chosen"]
    read: Int[Tensor, "batch heads sets read"]
    first: Int[Tensor, "batch heads sets chosen"]
    last: Int[Tensor, "batch heads sets chosen"]
    places: Int[Tensor, "batch heads sets read"]


def neighbours(groups: Numbers, count: int, block: int = BLOCK) -> Neighbours:
    """The sets in which each token sees the last `count` tokens of its own group, itself among them.

        sorted by (group, time)         … a a a a a | b b b b b b b | c c …
        a set                                     [ its queries ]
                                        [ count − 1 before them, and they ]

    One sort and no loop, whatever the sizes of the groups. groups: a number for each token of each head.
    """
    length, heads = groups.shape[1:]
    order = groups.transpose(1, 2).argsort(dim=-1, stable=True)
    start = run_starts(groups.transpose(1, 2).gather(2, order).flatten(0, 1)).unflatten(0, (-1, heads))
    count = max(1, min(count, length))
    place = torch.arange(length, device=groups.device)
    first = torch.maximum(start, place - count + 1)
    block = min(block, max(length, 1))
    sets = -(-length // block)
    chosen = torch.arange(sets * block, device=groups.device).view(sets, block)
    before = torch.arange(1 - count, block, device=groups.device)
    read = chosen[:, :1] + before

    def at(values: Tensor, places: Tensor) -> Tensor:
        """The values at these places, which may lie outside."""
        flat = values[..., places.clamp(0, max(length - 1, 0)).flatten()]
        return flat.unflatten(-1, places.shape)

    inside = (read >= 0) & (read < length)
    shape = (*order.shape[:2], sets, -1)
    return Neighbours(
        torch.where(chosen < length, at(order, chosen), NOWHERE),
        torch.where(inside, at(order, read), NOWHERE),
        at(first, chosen),
        chosen.expand(shape),
        read.expand(shape),
    )


def latest_members(
    groups: Numbers, clusters: int, count: int
) -> tuple[Int[Tensor, "batch clusters count heads"], Int[Tensor, "batch clusters heads"]]:
    """The last `count` tokens of each group below `clusters`, in their order and ending with the last, and how many of
    them there are; tokens of other groups count nowhere."""
    by_head = groups.transpose(1, 2)
    known = torch.where((by_head < 0) | (by_head >= clusters), clusters, by_head)
    order = known.argsort(dim=-1, stable=True)
    size = known.new_zeros(*known.shape[:2], clusters + 1).scatter_add_(2, known, torch.ones_like(known))
    end = size.cumsum(2)[..., :clusters]
    filled = size[..., :clusters].clamp_max(count)
    place = end[..., None] - count + torch.arange(count, device=groups.device)
    if groups.shape[1]:
        index = order.gather(2, place.clamp(0, groups.shape[1] - 1).flatten(2)).unflatten(2, place.shape[2:])
    else:
        index = torch.zeros_like(place)
    return index.permute(0, 2, 3, 1), filled.transpose(1, 2)


def statistics(
    z: Points, assigned: Numbers, clusters: int, absent: Bool[Tensor, "batch length"] | None = None
) -> tuple[Float[Tensor, "heads clusters"], Centroids]:
    """n and s: how many tokens are assigned to each centroid, and their sum. absent: tokens that don't count."""
    heads = z.shape[2]
    into = assigned + clusters * torch.arange(heads, device=z.device)
    weight = z.new_ones(z.shape[:3]) if absent is None else (~absent)[..., None].to(z.dtype).expand(z.shape[:3])
    count = z.new_zeros(heads * clusters).index_add(0, into.flatten(), weight.flatten())
    weighted = (z * weight[..., None]).flatten(0, 2)
    total = z.new_zeros(heads * clusters, z.shape[3]).index_add(0, into.flatten(), weighted)
    return count.unflatten(0, (heads, clusters)), total.unflatten(0, (heads, clusters))


def moved(
    counts: Float[Tensor, "heads clusters"],
    sums: Centroids,
    new_counts: Float[Tensor, "heads clusters"],
    new_sums: Centroids,
    decay: float,
) -> tuple[Float[Tensor, "heads clusters"], Centroids, Centroids]:
    """N, M and μ after a step. decay: λ."""
    counts = torch.lerp(new_counts, counts, decay)
    sums = torch.lerp(new_sums, sums, decay)
    total = counts.sum(-1, keepdim=True)
    smoothed = (counts + EPS) / (total + counts.shape[-1] * EPS) * total
    return counts, sums, sums / smoothed.clamp_min(torch.finfo(sums.dtype).tiny)[..., None]
