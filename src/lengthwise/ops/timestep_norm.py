"""Norm over groups of channels and all time up to now: statistics that gather the whole past of a document.

    m_t, v_t = mean and variance of x_t over the s channels of a group
    μ_t = μ_{t−1} + (m_t − μ_{t−1}) / n          σ²_t = ((n − 1) σ²_{t−1} + v_t) / n + (n − 1)/n² (m_t − μ_{t−1})²
    y_t = (x_t − μ_t) / √(σ²_t + eps) ⊙ gain + bias

n counts the steps of the document up to t, on top of a `prior` number of steps of mean 0 and variance 1. So μ_t and
σ²_t are mean and variance of all that the group has seen, the present step included, whatever the length: no large sums
are kept whose rounding grows. Ma et al. 2024, arXiv 2404.08801; the recurrence is that of Welford 1962, for groups of
values as in Chan et al. 1979.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.ops import fused
from lengthwise.ops.backend import resolve

Sequence = Float[Tensor, "batch length channels"]
Channels = Float[Tensor, " channels"]
Count = Int[Tensor, " batch"]
Moments = Float[Tensor, "batch groups"]
Mask = Bool[Tensor, "batch length"]
Statistics = tuple[Count, Moments, Moments]
"""The steps counted, the prior's among them, and mean and variance of each group."""


def first_statistics(x: Sequence, groups: int, prior: int = 0) -> Statistics:
    """The statistics before the first token, in the precision of the computation."""
    mean = x.new_zeros(x.shape[0], groups, dtype=fused.work_dtype(x.dtype))
    return mean.new_full((x.shape[0],), prior, dtype=torch.long), mean, torch.ones_like(mean)


def timestep_norm_reference(
    x: Sequence,
    gain: Channels,
    bias: Channels,
    statistics: Statistics,
    starts: Mask | None = None,
    padding: Mask | None = None,
    *,
    prior: int = 0,
    eps: float = 1e-5,
) -> tuple[Sequence, Statistics]:
    """The definition, one token at a time. Any dtype."""
    count, mean, variance = statistics
    grouped = x.unflatten(-1, (mean.shape[1], -1))
    never = [torch.zeros_like(count, dtype=torch.bool)] * x.shape[1]
    begins, absent = (never if mask is None else mask.unbind(1) for mask in (starts, padding))
    ys = []
    for x_t, begin, missing in zip(grouped.unbind(1), begins, absent, strict=True):
        before = (
            torch.where(begin, prior, count),
            mean.masked_fill(begin[:, None], 0),
            variance.masked_fill(begin[:, None], 1),
        )
        after = one_step(x_t, *before)
        kept = [missing, missing[:, None], missing[:, None]]
        old = (count, mean, variance)
        count, mean, variance = (torch.where(m, o, a) for m, o, a in zip(kept, old, after, strict=True))
        y_t = (x_t - mean[..., None]) * torch.rsqrt(variance + eps)[..., None]
        ys.append((y_t.flatten(1) * gain + bias).masked_fill(missing[:, None], 0))
    return (torch.stack(ys, 1) if ys else x), (count, mean, variance)


def one_step(x_t: Float[Tensor, "batch groups size"], count: Count, mean: Moments, variance: Moments) -> Statistics:
    """The statistics with one more token."""
    n = (count + 1)[:, None].to(x_t.dtype)
    m, v = x_t.mean(-1), x_t.var(-1, correction=0)
    variance = ((n - 1) * variance + v) / n + (n - 1) / n**2 * (m - mean).square()
    return count + 1, mean + (m - mean) / n, variance


def timestep_norm(
    x: Sequence,
    gain: Channels,
    bias: Channels,
    statistics: Statistics | None = None,
    starts: Mask | None = None,
    padding: Mask | None = None,
    *,
    groups: int,
    prior: int = 0,
    eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Sequence, Statistics]:
    """y for every token, and the statistics after the last one.

    statistics: those before the first token; None where it begins a document. starts: True where a token begins one, so
    that what came before doesn't count. padding: True where there is no token: it leaves the statistics as they are
    and gives 0. prior: a group of a single channel needs one, since its variance in the first step is 0.
    backend: "numba" reads x once in each direction and keeps 2 numbers of a group and step for the backward; "torch"
        merges the statistics of ever longer stretches in log₂ L rounds, on any device; "reference" is the definition.

    Computed in float32, or in float64 if x is; y has the dtype of x, the statistics that of the computation. Raises
    InputError for groups that don't divide the channels, a negative prior, and an unknown backend.
    """
    if groups < 1 or x.shape[2] % groups:
        raise InputError(f"groups must divide the {x.shape[2]} channels, got groups={groups}")
    if prior < 0:
        raise InputError(f"prior must be at least 0, got {prior}")
    form, given, dtype = resolve(backend, ("numba", "torch", "reference"), x), x.dtype, fused.work_dtype(x.dtype)
    count, mean, variance = first_statistics(x, groups, prior) if statistics is None else statistics
    x, gain, bias, mean, variance = (v.to(dtype) for v in (x, gain, bias, mean, variance))
    settings: dict[str, Any] = {"prior": prior, "eps": eps}
    if form != "numba":
        run = _by_doubling if form == "torch" else timestep_norm_reference
        y, after = run(x, gain, bias, (count, mean, variance), starts, padding, **settings)
        return y.to(given), after
    counts = count_steps(count, x.shape[1], starts, padding, prior)
    masks = fused.starts_or_none(starts, x), fused.starts_or_none(padding, x)
    tensors = (x, gain.unflatten(0, (groups, -1)), bias.unflatten(0, (groups, -1)), counts, *masks, mean, variance)
    if fused.needs_graph(x, gain, bias, mean, variance):
        y, mean, variance, *_ = torch.ops.lengthwise.timestep_norm(*tensors, eps)
    else:
        y, mean, variance, *_ = _forward(*tensors, eps)
    return y.to(given), (counts[:, -1].clone() if x.shape[1] else count, mean, variance)


def count_steps(
    count: Count, length: int, starts: Mask | None, padding: Mask | None, prior: int
) -> Int[Tensor, "batch length"]:
    """n of every token: the steps of its document up to it, on top of the prior."""
    step = torch.arange(1, length + 1, device=count.device).expand(count.shape[0], -1)
    if padding is not None:
        step = (~padding).long().cumsum(1)
    begun = -count[:, None]
    if starts is not None:
        begins = starts if padding is None else starts & ~padding
        begun = torch.where(begins, step - 1 - prior, begun).cummax(1).values
    return step - begun


class Stretch(NamedTuple):
    """What stretches of tokens count as, [batch, length], and the mean and the variance of each group over them,
    [batch, length, groups]."""

    weight: Tensor
    mean: Tensor
    variance: Tensor

    def part(self, begin: int | None, end: int | None) -> Stretch:
        """The stretches that end in a part of the tokens."""
        return Stretch(*(t[:, begin:end] for t in self))

    def then(self, other: Stretch) -> Stretch:
        """These stretches and others after them."""
        return Stretch(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))

    def where(self, mask: Tensor, other: Stretch) -> Stretch:
        """These stretches where the mask is True, others elsewhere."""
        masks = mask, mask[..., None], mask[..., None]
        return Stretch(*(torch.where(m, a, b) for m, a, b in zip(masks, self, other, strict=True)))


def merge(older: Stretch, newer: Stretch) -> Stretch:
    """The statistics of two stretches together. Chan et al. 1979."""
    total = older.weight + newer.weight
    share = (newer.weight / total.clamp_min(1))[..., None]
    apart = newer.mean - older.mean
    variance = (1 - share) * older.variance + share * (newer.variance + (1 - share) * apart.square())
    return Stretch(total, older.mean + share * apart, variance)


def _by_doubling(
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    statistics: Statistics,
    starts: Tensor | None,
    padding: Tensor | None,
    *,
    prior: int,
    eps: float,
) -> tuple[Tensor, Statistics]:
    """The statistics of 1, 2, 4, … tokens up to each one, each merged from two of half the length."""
    count, mean, variance = statistics
    absent = torch.zeros_like(x[..., 0], dtype=torch.bool) if padding is None else padding
    begins = torch.zeros_like(absent) if starts is None else starts & ~absent
    x = x.masked_fill(absent[..., None], 0)  # what is in padding may be no number
    grouped = x.unflatten(-1, (mean.shape[1], -1))
    of_token = grouped.mean(-1)
    each = Stretch((~absent).to(x), of_token, (grouped - of_token[..., None]).square().mean(-1))
    fresh = Stretch(torch.full_like(each.weight, prior), torch.zeros_like(of_token), torch.ones_like(of_token))
    each = merge(fresh, each).where(begins, each)
    # What was before the first token stands in front, as a step of its own that counts as many.
    now = Stretch(count[:, None].to(x), mean[:, None], variance[:, None]).then(each)
    begins, reach = torch.cat([begins.new_zeros(len(begins), 1), begins], 1), 1
    while reach <= x.shape[1]:
        older, newer = now.part(None, -reach), now.part(reach, None)
        now = now.part(None, reach).then(newer.where(begins[:, reach:], merge(older, newer)))
        begins = torch.cat([begins[:, :reach], begins[:, reach:] | begins[:, :-reach]], 1)
        reach *= 2
    normed = (grouped - now.mean[:, 1:, :, None]) * torch.rsqrt(now.variance[:, 1:, :, None] + eps)
    y = (normed.flatten(2) * gain + bias).masked_fill(absent[..., None], 0)
    counts = torch.cat([count[:, None], count_steps(count, x.shape[1], starts, padding, prior)], 1)
    return y, (counts[:, -1], now.mean[:, -1], now.variance[:, -1])


def _ranges(kernels: Any, x: Tensor, groups: int) -> tuple[int, list[tuple[int, int]]]:
    """Groups of a unit of work, and the ranges of units that the threads take."""
    width = max(1, kernels.WIDTH * groups // max(x.shape[2], 1))
    return width, fused.parts(x.shape[0] * -(-groups // width), x.numel())


def _forward(
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    counts: Tensor,
    starts: Tensor,
    padding: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> tuple[Tensor, ...]:
    kernels: Any = import_module("lengthwise.ops.numba_timestep_norm")

    grouped, shape = x.unflatten(2, gain.shape), (*x.shape[:2], gain.shape[0])
    y = torch.empty(grouped.shape, dtype=x.dtype)
    means, variances = torch.empty(shape, dtype=x.dtype), torch.empty(shape, dtype=x.dtype)
    mean, variance = (t.clone(memory_format=torch.contiguous_format) for t in (mean, variance))
    given, results = (
        fused.arrays(grouped, gain, bias, counts, starts, padding),
        fused.arrays(mean, variance, y, means, variances),
    )
    width, ranges = _ranges(kernels, x, gain.shape[0])
    fused.run([partial(kernels.forward, *given, eps, *results, width, *r) for r in ranges])
    return y.flatten(2), mean, variance, means, variances


def _backward(
    d_y: Tensor,
    d_mean: Tensor,
    d_variance: Tensor,
    x: Tensor,
    gain: Tensor,
    counts: Tensor,
    starts: Tensor,
    padding: Tensor,
    initial: Tensor,
    means: Tensor,
    variances: Tensor,
    eps: float,
) -> tuple[Tensor, ...]:
    kernels: Any = import_module("lengthwise.ops.numba_timestep_norm")

    d_x = torch.empty(*x.shape[:2], *gain.shape, dtype=x.dtype)
    d_gain, d_bias = (torch.zeros(x.shape[0], *gain.shape, dtype=x.dtype) for _ in range(2))
    d_mean, d_variance = (t.clone(memory_format=torch.contiguous_format) for t in (d_mean, d_variance))
    slopes, grouped = d_y.unflatten(2, gain.shape), x.unflatten(2, gain.shape)
    given = fused.arrays(slopes, grouped, gain, counts, starts, padding)
    results = fused.arrays(initial, means, variances, d_mean, d_variance, d_x, d_gain, d_bias)
    width, ranges = _ranges(kernels, x, gain.shape[0])
    fused.run([partial(kernels.backward, *given, eps, *results, width, *r) for r in ranges])
    return d_x.flatten(2), d_gain.sum(0), d_bias.sum(0), d_mean, d_variance


_forward_op = torch.library.custom_op(
    "lengthwise::timestep_norm",
    _forward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor gain, Tensor bias, Tensor counts, Tensor starts, Tensor padding, Tensor mean,"
    " Tensor variance, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    "lengthwise::timestep_norm_backward",
    _backward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor d_y, Tensor d_mean, Tensor d_variance, Tensor x, Tensor gain, Tensor counts, Tensor starts,"
    " Tensor padding, Tensor initial, Tensor means, Tensor variances, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_forward_op.register_fake
def _forward_shapes(x: Tensor, gain: Tensor, *others: Any) -> tuple[Tensor, ...]:
    mean, variance = others[4:6]
    steps = (*x.shape[:2], gain.shape[0])
    shapes = (x.shape, mean.shape, variance.shape, steps, steps)
    return tuple(x.new_empty(shape) for shape in shapes)


@_backward_op.register_fake
def _backward_shapes(*inputs: Any) -> tuple[Tensor, ...]:
    _, d_mean, d_variance, x, gain, *_ = inputs
    return tuple(t.new_empty(t.shape) for t in (x, gain, gain, d_mean, d_variance))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gain, _, counts, starts, padding, mean, _, ctx.eps = inputs
    ctx.save_for_backward(x, gain, counts, starts, padding, mean, *output[3:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: a checkpoint computes again what it gives
    x, _, _, _, _, mean, *_ = saved
    likes = (x, mean, mean)
    given = [torch.zeros_like(like) if s is None else s for s, like in zip(slopes[:3], likes, strict=True)]
    d_x, d_gain, d_bias, d_mean, d_variance = _backward_op(*given, *saved, ctx.eps)
    return d_x, d_gain, d_bias, None, None, None, d_mean, d_variance, None


_forward_op.register_autograd(_gradients, setup_context=_save)
