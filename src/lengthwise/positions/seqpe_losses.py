"""What a sequential position encoding is trained by beside the task: similarity that follows distance, and far windows
that behave as the trained one.

    contrast = mean over pivots p of −log softmax_k( e(p) · e(c_k) ) at the k whose c_k is nearest to p
    transfer = KL(stop(G) ‖ G′) + KL(G′ ‖ stop(G))
        G_h = softmax_j( e_h(i) · e_h(j) )      G′_h = softmax_j( e_h(a + i) · e_h(a + j) )      i, j in a window

Positions are coordinates, [..., axes], of whole numbers below `limit` on every axis. What is drawn comes from torch's
generator. Li et al. 2025, arXiv 2506.13277.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from lengthwise.errors import InputError, unknown

REDUCTIONS = ("mean", "rows")
"""The transfer loss as a mean over all numbers of G, or over its distributions, which is as many times larger as a
distribution has numbers."""

NEAR = 256
"""How many positions the box has from which all candidates of a pivot are drawn, in most cases."""

BOXED, HARD = 0.6, 0.25
"""How often a pivot has its candidates from the box, and how many of its candidates are hard otherwise."""


def contrastive_loss(
    pivots: Float[Tensor, "pivots width"],
    candidates: Float[Tensor, "pivots candidates width"],
    nearest: Int[Tensor, " pivots"],
) -> Float[Tensor, ""]:
    """Cross-entropy of the nearest candidate, over inner products of whole vectors; the mean over pivots."""
    return functional.cross_entropy(torch.einsum("pw,pcw->pc", pivots, candidates), nearest)


def transfer_loss(
    teacher: Float[Tensor, "windows places width"],
    student: Float[Tensor, "windows places width"],
    heads: int,
    reduction: str = "mean",
) -> Float[Tensor, ""]:
    """Both divergences between the similarities in the trained window, to which no gradient goes, and in another.

    reduction: "mean" divides by windows · heads · places², as the released code does; "rows" by windows · heads ·
    places. Exactly 0 where student and teacher are equal.
    """
    if reduction not in REDUCTIONS:
        raise unknown("reduction", reduction, REDUCTIONS)
    of_teacher, of_student = (similarities(e, heads) for e in (teacher.detach(), student))
    apart = (of_student.exp() - of_teacher.exp()) * (of_student - of_teacher)
    return apart.mean() * (1 if reduction == "mean" else apart.shape[-1])


def similarities(e: Float[Tensor, "windows places width"], heads: int) -> Float[Tensor, "windows heads places places"]:
    """log G of each head, the vector being divided among the heads."""
    e = e.unflatten(-1, (heads, -1)).transpose(1, 2)
    return (e @ e.mT).log_softmax(-1)


def nearest(pivots: Int[Tensor, "pivots axes"], candidates: Int[Tensor, "pivots candidates axes"]) -> Tensor:
    """The number of the candidate at the least Euclidean distance from each pivot."""
    return (candidates - pivots[:, None]).double().square().sum(-1).argmin(-1)


def draw_candidates(
    pivots: Int[Tensor, "pivots axes"], count: int, limit: int, digits: int
) -> Int[Tensor, "pivots count axes"]:
    """Different positions for each pivot, none of which it is.

    Of 10 pivots 6 have them from a box of 256 positions with equal sides, which may lie anywhere. The others have them
    from everywhere, and a quarter of them from changing 1 to 3 digits of the pivot, where that leads farther away than
    the nearest of the rest.
    """
    axes = pivots.shape[1]
    side = min(limit, round(NEAR ** (1 / axes)))
    if side**axes <= count:
        raise InputError(f"{count} candidates need more than {side**axes} positions; take fewer, or more positions")
    boxed = torch.rand(len(pivots), device=pivots.device) < BOXED
    corner = torch.randint(limit - side + 1, pivots.shape, device=pivots.device)
    near = in_box(pivots, corner, side, count)
    far = in_box(pivots, torch.zeros_like(pivots), limit, count)
    hard = int(count * HARD)
    if hard:
        far[:, :hard] = harder(pivots, far, hard, limit, digits)
    return torch.where(boxed[:, None, None], near, far)


def in_box(
    pivots: Int[Tensor, "pivots axes"], corner: Int[Tensor, "pivots axes"], side: int, count: int
) -> Int[Tensor, "pivots count axes"]:
    """`count` different positions of a box for each pivot, other than the pivot, in random order."""
    axes = pivots.shape[1]
    scale = torch.tensor([side ** (axes - 1 - axis) for axis in range(axes)], device=pivots.device)
    place = pivots - corner
    inside = ((place >= 0) & (place < side)).all(-1, keepdim=True)
    own = torch.where(inside, (place * scale).sum(-1, keepdim=True), side**axes)
    # Numbers in order, each moved on by how many come before it, differ; so does all that is moved past the pivot.
    room = side**axes - count + 1 - inside.long()
    drawn = (torch.rand(len(pivots), count, device=pivots.device) * room).long().minimum(room - 1).sort(-1).values
    drawn = drawn + torch.arange(count, device=pivots.device)
    drawn = drawn + (drawn >= own)
    drawn = drawn.gather(1, torch.rand(drawn.shape, device=pivots.device).argsort(-1))
    return corner[:, None] + drawn[..., None].div(scale, rounding_mode="floor") % side


def harder(pivots: Tensor, drawn: Tensor, count: int, limit: int, digits: int) -> Int[Tensor, "pivots count axes"]:
    """The first `count` of the positions that were drawn, or in their place, where it is farther than the nearest of
    the rest and a new one, the pivot with some digits changed."""
    changed = from_digits(edited(to_digits(pivots, digits)[:, None].expand(-1, count, -1)), digits, pivots.shape[1])
    rest = drawn[:, count:]
    apart = (rest - pivots[:, None]).double().square().sum(-1).amin(-1, keepdim=True)
    farther = (changed - pivots[:, None]).double().square().sum(-1) > apart
    known = same(changed, drawn).any(-1) | same(changed, changed).tril(-1).any(-1)
    kept = farther & ~known & (changed < limit).all(-1)
    return torch.where(kept[..., None], changed, drawn[:, :count])


def same(a: Int[Tensor, "pivots m axes"], b: Int[Tensor, "pivots n axes"]) -> Bool[Tensor, "pivots m n"]:
    """Which positions of a pivot are alike."""
    return (a[:, :, None] == b[:, None]).all(-1)


def edited(strings: Int[Tensor, "*rows length"]) -> Int[Tensor, "*rows length"]:
    """1 to 3 changes of each string of digits: a digit replaced, two neighbours swapped, one digit put in or left out
    and what stands before it moved by one place, with a 0 where the string then begins."""
    place = torch.arange(strings.shape[-1], device=strings.device)
    shape = (*strings.shape[:-1], 1)
    changes = torch.randint(1, 4, shape, device=strings.device)
    for number in range(3):
        at, kind = (torch.randint(n, shape, device=strings.device) for n in (len(place), 4))
        digit = torch.randint(10, shape, device=strings.device)
        other = (at + 1) % len(place)
        source = torch.where(place == at, other, torch.where(place == other, at, place))
        replaced = torch.where(place == at, digit, strings)
        swapped = strings.gather(-1, source)
        put_in = torch.where(place < at, functional.pad(strings[..., 1:], (0, 1)), replaced)
        left_out = torch.where(place <= at, functional.pad(strings[..., :-1], (1, 0)), strings)
        found = torch.stack([replaced, swapped, put_in, left_out])
        one = found.gather(0, kind.expand_as(strings)[None])[0]
        strings = torch.where(changes > number, one, strings)
    return strings


def to_digits(positions: Int[Tensor, "*rows axes"], digits: int) -> Int[Tensor, "*rows length"]:
    """The digits of all axes, most significant first."""
    powers = torch.tensor([10**k for k in reversed(range(digits))], device=positions.device)
    return (positions[..., None].div(powers, rounding_mode="floor") % 10).flatten(-2)


def from_digits(strings: Int[Tensor, "*rows length"], digits: int, axes: int) -> Int[Tensor, "*rows axes"]:
    """The positions that strings of digits write."""
    powers = torch.tensor([10**k for k in reversed(range(digits))], device=strings.device)
    return (strings.unflatten(-1, (axes, digits)) * powers).sum(-1)


def draw_shift(size: tuple[int, ...], limit: int, device: torch.device) -> Int[Tensor, " axes"]:
    """Where a window of this size begins that may lie anywhere."""
    room = torch.tensor([limit - side + 1 for side in size], device=device)
    return (torch.rand(len(size), device=device, dtype=torch.float64) * room).long()


def draw_far(count: int, size: tuple[int, ...], limit: int, device: torch.device) -> Int[Tensor, "count axes"]:
    """Where windows of this size begin that are other than the trained one, which begins at 0.

    On one axis from a quarter of its length on; with more, one axis chosen at random begins behind the trained window.
    Raises InputError where there is no room.
    """
    least = [math.ceil(size[0] / 4)] if len(size) == 1 else list(size)
    room = [limit - side for side in size]
    if any(most <= low for most, low in zip(room, least, strict=True)):
        raise InputError(
            f"transfer needs positions beyond the trained window: got {limit} on each axis and a window of "
            f"{' by '.join(map(str, size))}; build seqpe with more positions, or transfer=0"
        )
    beyond = torch.nn.functional.one_hot(torch.randint(len(size), (count,), device=device), len(size)).bool()
    low = torch.where(beyond, torch.tensor(least, device=device), 0)
    high = torch.tensor(room, device=device)
    return low + (torch.rand(count, len(size), device=device, dtype=torch.float64) * (high - low)).long()


def draw_places(windows: int, count: int, length: int, device: torch.device) -> Int[Tensor, "windows count"]:
    """Different places of a window, or all of them where it has fewer."""
    return torch.rand(windows, length, device=device).topk(min(count, length)).indices
