"""Diagonal linear recurrence, the core of gated recurrent and state-space mixers.

    h_t = a_t ⊙ h_{t-1} + b_t          a, b, h: [batch, length, channels], real or complex

where a may be [channels], the same for every token; and the same recurrence of positive numbers in logarithms,

    log h_t = log(exp(log a_t + log h_{t-1}) + exp(log b_t)).
"""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.ops import fused, memory
from lengthwise.ops.backend import resolve

Sequence = Num[Tensor, "batch length channels"]
Rates = Num[Tensor, "batch length channels"] | Num[Tensor, " channels"]
Edge = Num[Tensor, "batch channels"]
Logarithms = Float[Tensor, "batch length channels"]
LogarithmicEdge = Float[Tensor, "batch channels"]
Starts = Bool[Tensor, "batch length"]

PAGE, LINE = 4096, 64
"""Bytes of a page of memory and of a line of the cache."""


def scan_reference(
    a: Rates, b: Sequence, initial: Edge | None = None, starts: Starts | None = None
) -> tuple[Sequence, Edge]:
    """The definition, one token at a time. Any dtype."""
    h = torch.zeros_like(b[:, :1]).sum(1) if initial is None else initial
    # Unbound once: a slice at every token would make the backward quadratic in the length.
    rates = a.unbind(1) if a.ndim == 3 else [a] * b.shape[1]
    hs = []
    for a_t, b_t, start in zip(rates, b.unbind(1), _resets(starts, b), strict=True):
        h = a_t * (h if start is None else h.masked_fill(start, 0)) + b_t
        hs.append(h)
    return (torch.stack(hs, 1) if hs else b), h


def log_scan_reference(
    log_a: Logarithms, log_b: Logarithms, log_initial: LogarithmicEdge | None = None, starts: Starts | None = None
) -> tuple[Logarithms, LogarithmicEdge]:
    """The definition, one token at a time. Any dtype."""
    h = log_b.new_full((log_b.shape[0], log_b.shape[2]), -torch.inf) if log_initial is None else log_initial
    hs = []
    for a_t, b_t, start in zip(log_a.unbind(1), log_b.unbind(1), _resets(starts, log_b), strict=True):
        old = a_t + h
        h = torch.logaddexp(old if start is None else old.masked_fill(start, -torch.inf), b_t)
        hs.append(h)
    return (torch.stack(hs, 1) if hs else log_b), h


def _resets(starts: Starts | None, b: Tensor) -> Any:
    return [None] * b.shape[1] if starts is None else starts[..., None].unbind(1)


def scan(
    a: Rates, b: Sequence, initial: Edge | None = None, starts: Starts | None = None, *, backend: str = "auto"
) -> tuple[Sequence, Edge]:
    """h for every token, and the last one.

    initial: the state before the first token, zeros if None. starts: True where a token begins a document, so that
    the state before it counts as zero. backend: "numba" reads a and b once and writes h once, and its backward is a
    scan in reverse; "reference" is the definition, on any device.

    Computed in float32, or in float64 if b is; complex if any of a, b and initial is. h has the dtype of b, or the
    complex one; the last state that of the computation. Gradients of complex numbers follow PyTorch's convention.
    Raises InputError for an unknown backend, and where a has neither shape.
    """
    form = resolve(backend, ("numba", "reference"), b)
    if a.shape not in (b.shape, b.shape[2:]):
        raise InputError(
            f"a must be [batch, length, channels] as b is, or [channels], got {list(a.shape)} beside {list(b.shape)}"
        )
    dtype = fused.work_numbers(fused.work_dtype(b.real.dtype), a, b, initial)
    given = b.dtype if b.is_complex() == dtype.is_complex else dtype
    initial = torch.zeros(b.shape[0], b.shape[2], dtype=dtype, device=b.device) if initial is None else initial
    a, b, initial = a.to(dtype), b.to(dtype), initial.to(dtype)
    if form == "numba":
        h, final = _fused("scan", a if a.ndim == 3 else a[None, None], b, initial, starts)
    else:
        h, final = scan_reference(a, b, initial, starts)
    return h.to(given), final


def log_scan(
    log_a: Logarithms,
    log_b: Logarithms,
    log_initial: LogarithmicEdge | None = None,
    starts: Starts | None = None,
    *,
    backend: str = "auto",
) -> tuple[Logarithms, LogarithmicEdge]:
    """log h for every token, and the last one, where h follows the recurrence of a = exp(log_a), b = exp(log_b).

    Each step adds to the larger of its two terms, so nothing overflows and precision doesn't depend on the length.
    log_initial: the logarithm of the state before the first token; None (or -inf) is a state of zero.
    starts, backend, precision and errors as in `scan`; log_a has a factor for each token.
    """
    form = resolve(backend, ("numba", "reference"), log_b)
    if log_a.shape != log_b.shape:
        raise InputError(f"log_a and log_b must have one shape, got {list(log_a.shape)} beside {list(log_b.shape)}")
    dtype, given = fused.work_dtype(log_b.dtype), log_b.dtype
    if log_initial is None:
        log_initial = log_b.new_full((log_b.shape[0], log_b.shape[2]), -torch.inf, dtype=dtype)
    log_a, log_b, log_initial = log_a.to(dtype), log_b.to(dtype), log_initial.to(dtype)
    if form == "numba":
        h, final = _fused("log_scan", log_a, log_b, log_initial, starts)
    else:
        h, final = log_scan_reference(log_a, log_b, log_initial, starts)
    return h.to(given), final


def _fused(name: str, a: Tensor, b: Tensor, initial: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    borders = fused.starts_or_none(starts, b)
    if fused.needs_graph(a, b, initial):
        h, final = getattr(torch.ops.lengthwise, name)(a, b, initial, borders)
        return h, final
    return _forward(name, a, b, initial, borders)


def _units(h: Tensor) -> tuple[int, list[tuple[int, int]]]:
    """The channels of a unit of work, and the units of each thread.

    Memory is read at full speed where it lies together: tokens whole, if the batch alone divides evenly among the
    threads, else their pages. A piece of a page takes nearly three times as long as it should, so that pages are cut
    only for three threads or more.
    """
    batch, _, channels = h.shape
    threads, line = torch.get_num_threads(), LINE // h.itemsize
    even = threads // math.gcd(batch, threads)
    blocks = min(even, -(-channels * h.itemsize // PAGE))
    if threads >= 3 * batch * blocks:
        blocks = even
    width = max(-(-channels // max(blocks * line, 1)), 4) * line
    return width, fused.parts(batch * -(-channels // width), h.numel())


def _forward(name: str, a: Tensor, b: Tensor, initial: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    kernels: Any = import_module("lengthwise.ops.numba_scan")

    kernel = {"scan": kernels.forward, "log_scan": kernels.log_forward}[name]
    h, final = memory.empty(*b.shape, dtype=b.dtype), torch.empty(initial.shape, dtype=b.dtype)
    given = fused.arrays(a, b, initial, starts, h, final)
    width, ranges = _units(b)
    fused.run([partial(kernel, *given, width, first, last) for first, last in ranges])
    return h, final


def _backward(
    name: str, a: Tensor, h: Tensor, initial: Tensor, starts: Tensor, d_h: Tensor, d_final: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    kernels: Any = import_module("lengthwise.ops.numba_scan")

    kernel = {"scan": kernels.backward, "log_scan": kernels.log_backward}[name]
    d_b, carried = memory.empty(*h.shape, dtype=h.dtype), d_final.clone(memory_format=torch.contiguous_format)
    if a.shape == h.shape:
        d_a = memory.empty(*a.shape, dtype=a.dtype)
    else:
        kernel, d_a = kernels.shared_backward, torch.zeros(h.shape[0], 1, h.shape[2], dtype=a.dtype)
    given = fused.arrays(a, h, initial, starts, d_h, carried, d_a, d_b)
    width, ranges = _units(h)
    fused.run([partial(kernel, *given, width, first, last) for first, last in ranges])
    return d_a if a.shape == h.shape else d_a.sum(0, keepdim=True), d_b, carried


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    a, _, initial, starts = inputs
    ctx.save_for_backward(a, output[0], initial, starts)
    ctx.set_materialize_grads(False)


def _register(name: str) -> None:
    """The op `lengthwise::NAME` and its backward."""
    forward_op = torch.library.custom_op(
        f"lengthwise::{name}",
        partial(_forward, name),
        mutates_args=(),
        device_types="cpu",
        schema="(Tensor a, Tensor b, Tensor initial, Tensor starts) -> (Tensor, Tensor)",
    )
    backward_op = torch.library.custom_op(
        f"lengthwise::{name}_backward",
        partial(_backward, name),
        mutates_args=(),
        device_types="cpu",
        schema="(Tensor a, Tensor h, Tensor initial, Tensor starts, Tensor d_h, Tensor d_final)"
        " -> (Tensor, Tensor, Tensor)",
    )

    def gradients(ctx: Any, d_h: Tensor | None, d_final: Tensor | None) -> tuple[Tensor | None, ...]:
        a, h, initial, starts = ctx.saved_tensors
        d_h = torch.zeros_like(h) if d_h is None else d_h
        d_final = torch.zeros_like(initial) if d_final is None else d_final
        return (*backward_op(a, h, initial, starts, d_h, d_final), None)

    forward_op.register_fake(lambda _, b, initial, *__: (b.new_empty(b.shape), b.new_empty(initial.shape)))
    backward_op.register_fake(
        lambda a, h, initial, *__: (a.new_empty(a.shape), h.new_empty(h.shape), h.new_empty(initial.shape))
    )
    forward_op.register_autograd(gradients, setup_context=_save)


for _name in ("scan", "log_scan"):
    _register(_name)
