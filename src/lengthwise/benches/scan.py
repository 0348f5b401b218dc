"""Benchmarks of the fused recurrences against loops over tokens, and of the short convolution.

All at 2048 tokens of one row; each loop unbinds its inputs once, so that its backward isn't quadratic in the length.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from lengthwise.benches.row import Row
from lengthwise.measure import interleaved, matmul_rate, peak_bytes, read_bandwidth
from lengthwise.ops import ema as averages
from lengthwise.ops import integrate_and_fire as neurons
from lengthwise.ops import scan as scans
from lengthwise.ops import wkv as weighted
from lengthwise.ops.selective_scan import selective_scan as fused_selective_scan
from lengthwise.ops.selective_scan import selective_scan_reference
from lengthwise.ops.short_convolution import short_convolution as fused_convolution
from lengthwise.ops.short_convolution import short_convolution_reference

Form = Callable[..., Tensor]
MEMORY, PRODUCTS = "reading memory", "matrix products, float32"
LOOP = "a loop over tokens"


def selective_scan(length: int = 2048, channels: int = 1024, state: int = 16) -> Iterator[Row]:
    """Forward, and forward with backward, against a loop over tokens and the parallel scan of mambapy."""
    torch.manual_seed(0)
    given = selective_inputs(length, channels, state)
    forms: dict[str, Form] = {
        "fused": lambda *v: fused_selective_scan(*v, backend="numba")[0],
        LOOP: lambda *v: selective_scan_reference(*v)[0],
    }
    if importlib.util.find_spec("mambapy") is not None:
        forms["mambapy"] = mambapy_scan
    # For each number of the state: its exponential 20 (product, limits, rounding, polynomial), the step 3, reading it
    # out 2; the backward takes exponential and step again and needs 14 more.
    work = tuple(length * channels * state * count for count in (25, 25 + 23 + 14))
    in_and_out = 4 * (3 * given[0].numel() + 2 * given[3].numel())
    peak = peak_bytes(trained(forms["fused"], given)) / in_and_out
    yield from compared(
        f"selective_scan, L {length}, E {channels}, N {state}",
        forms,
        given,
        tuple(flops / matmul_rate() for flops in work),
        PRODUCTS,
        f"peak memory forward and backward {peak:.1f} times input and output",
        repeats=3,
    )


def scan(length: int = 2048, channels: int = 1024) -> Iterator[Row]:
    """The real recurrence, the complex one whose factors are the same for all tokens, and the one in logarithms, which
    is also measured against cumulative sums."""
    torch.manual_seed(0)
    a, b, initial = torch.rand(1, length, channels), torch.randn(1, length, channels), torch.zeros(1, channels)
    # Forward: a and b in, h out; backward: the gradient of h, a and h in, two gradients out.
    least = seconds_of_reading(b, 3, 8)
    sizes = f"L {length}, {channels} channels"
    yield from against_loop(f"scan, {sizes}", scans.scan, scans.scan_reference, [a, b, initial], least)
    half = channels // 2
    rates = torch.polar(torch.rand(half), torch.randn(half))
    z = torch.randn(1, length, half, dtype=torch.complex64)
    # b in, h out; backward: h and its gradient in, that of b out.
    given, name = [rates, z], f"scan with equal factors, L {length}, {half} complex channels"
    yield from against_loop(name, scans.scan, scans.scan_reference, given, seconds_of_reading(z, 2, 5))
    log_forms: dict[str, Form] = {
        "fused": lambda *v: scans.log_scan(*v, backend="numba")[0],
        LOOP: lambda *v: scans.log_scan_reference(*v)[0],
        "cumsum and logcumsumexp": cumulative_log_scan,
    }
    yield from compared(f"log_scan, {sizes}", log_forms, [a.log(), b], least, MEMORY, repeats=5)


def wkv(length: int = 2048, channels: int = 1024) -> Iterator[Row]:
    """The weighted average of RWKV."""
    torch.manual_seed(0)
    k, v = torch.randn(2, 1, length, channels)
    given = [k, v, torch.rand(channels), torch.randn(channels)]
    # k and v in, y out; backward: k, v and the gradient of y in, two gradients out.
    least = seconds_of_reading(k, 3, 8)
    yield from against_loop(f"wkv, L {length}, {channels} channels", weighted.wkv, weighted.wkv_reference, given, least)


def ema(length: int = 2048, channels: int = 1024, states: int = 16) -> Iterator[Row]:
    """Moving averages of each channel, real and complex."""
    torch.manual_seed(0)
    x, rate, w = torch.randn(1, length, channels), torch.rand(channels, states), torch.randn(channels, states)
    turning = torch.polar(rate, torch.randn(channels, states))
    sizes, numbers = f"L {length}, {channels} channels of {states}", length * channels * states
    # Products and sums for each number of the state. Forward: the step and reading it out; backward: the step again,
    # its derivative, two sums of gradients, and the recurrence in reverse.
    kinds = {"real": ([x, rate, w], (4, 17)), "complex": ([x, turning, w * (1 + 1j)], (11, 45))}
    for kind, (given, operations) in kinds.items():
        least = tuple(numbers * count / matmul_rate() for count in operations)
        yield from against_loop(
            f"{kind} ema, {sizes}", averages.ema, averages.ema_reference, given, least, limit=PRODUCTS
        )


def integrate_and_fire(length: int = 2048, channels: int = 1024) -> Iterator[Row]:
    """Leaky integrate-and-fire neurons."""
    torch.manual_seed(0)
    x = 2 * torch.randn(1, length, channels)
    # x in, spikes out; for the backward the charge out too, then charge and gradient in, gradient out.
    yield from against_loop(
        f"integrate_and_fire, L {length}, {channels} channels",
        neurons.integrate_and_fire,
        neurons.integrate_and_fire_reference,
        [x],
        seconds_of_reading(x, 2, 6),
    )


def seconds_of_reading(like: Tensor, *arrays: int) -> tuple[float, ...]:
    """Seconds that so many arrays of the size of `like` take to be read."""
    return tuple(count * like.nbytes / read_bandwidth() for count in arrays)


def against_loop(
    name: str,
    op: Callable[..., tuple[Tensor, ...]],
    reference: Callable[..., tuple[Tensor, ...]],
    given: Sequence[Tensor],
    least: Sequence[float],
    limit: str = MEMORY,
) -> Iterator[Row]:
    """The fused form of an op against its definition, of both the first result."""
    forms: dict[str, Form] = {"fused": lambda *v: op(*v, backend="numba")[0], LOOP: lambda *v: reference(*v)[0]}
    yield from compared(name, forms, given, least, limit, repeats=5)


def short_convolution(length: int = 2048, channels: int = 1024, kernel: int = 4) -> Iterator[Row]:
    """With SiLU, against shifted products and PyTorch's convolution of channels first."""
    torch.manual_seed(0)
    given = [torch.randn(1, length, channels), torch.randn(channels, kernel), torch.randn(channels)]
    # Forward: x in, y out; backward: x and the gradient of y in, that of x out.
    least = seconds_of_reading(given[0], 2, 5)
    forms: dict[str, Form] = {
        "fused": lambda x, w, b: fused_convolution(x, w, b, activation="silu", backend="numba")[0],
        "shifted products": lambda x, w, b: short_convolution_reference(x, w, b, activation="silu")[0],
        "conv1d": library_convolution,
    }
    sizes = f"L {length}, {channels} channels, kernel {kernel}"
    yield from compared(f"short_convolution with SiLU, {sizes}", forms, given, least, MEMORY, repeats=5)


def compared(
    name: str,
    forms: Mapping[str, Form],
    given: Sequence[Tensor],
    least: Sequence[float],
    limit: str,
    note: str = "",
    *,
    repeats: int,
) -> Iterator[Row]:
    """A row forward and one forward with backward: the form "fused" against the others, and the share of the limit,
    of which `least` are the seconds at full speed."""
    for kind, wrap, seconds in zip(("forward", "forward and backward"), (inferred, trained), least, strict=True):
        times = interleaved({key: wrap(form, given) for key, form in forms.items()}, repeats=repeats)
        own = times.pop("fused")
        ratios = {peer: time / own for peer, time in times.items()}
        yield Row(f"{name}, {kind}", own, ratios, seconds / own, limit, note)


def inferred(form: Form, given: Sequence[Tensor]) -> Callable[[], object]:
    """A function that runs a forward pass without a graph."""
    return torch.no_grad()(partial(form, *given))


def trained(form: Form, given: Sequence[Tensor]) -> Callable[[], object]:
    """A function that runs a forward and a backward pass, from a gradient of every number."""
    leaves = [v.clone().requires_grad_() for v in given]
    grad = torch.randn_like(form(*given))
    return lambda: torch.autograd.grad(form(*leaves), leaves, grad)


def selective_inputs(length: int, channels: int, state: int) -> list[Tensor]:
    """x, dt, A, B, C, D of one row, as a Mamba layer begins."""
    x, dt = torch.randn(1, length, channels), 0.1 * torch.rand(1, length, channels)
    A = -torch.arange(1.0, state + 1).repeat(channels, 1)
    return [x, dt, A, torch.randn(1, length, state), torch.randn(1, length, state), torch.ones(channels)]


def mambapy_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan with mambapy's parallel scan, as its own Mamba block calls it."""
    from mambapy.pscan import pscan

    decays, inputs = torch.exp(dt[..., None] * A), (dt * x)[..., None] * B[:, :, None]
    return (pscan(decays, inputs) @ C[..., None]).squeeze(3) + D * x


def cumulative_log_scan(log_a: Tensor, log_b: Tensor) -> Tensor:
    """The published form of the recurrence in logarithms, which loses precision as the cumulative sum grows."""
    total = log_a.cumsum(1)
    return total + torch.logcumsumexp(log_b - total, 1)


def library_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's depthwise convolution, which wants the channels first."""
    padded = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=weight.shape[0])).transpose(1, 2)
