"""Diagonal linear recurrence, the core of gated recurrent and state-space mixers.

    h_t = a_t ⊙ h_{t-1} + b_t          a, b, h: [batch, length, channels]

and the same recurrence of positive numbers in logarithms,

    log h_t = log(exp(log a_t + log h_{t-1}) + exp(log b_t)).
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lengthwise.ops import fused
from lengthwise.ops.backend import resolve

Sequence = Float[Tensor, "batch length channels"]
Edge = Float[Tensor, "batch channels"]
Starts = Bool[Tensor, "batch length"]


def scan_reference(
    a: Sequence, b: Sequence, initial: Edge | None = None, starts: Starts | None = None
) -> tuple[Sequence, Edge]:
    """The definition, one token at a time. Any dtype."""
    h = torch.zeros_like(b[:, :1]).sum(1) if initial is None else initial
    if starts is not None:
        a = a.masked_fill(starts[..., None], 0)
    hs = []
    # Unbound once: a slice at every token would make the backward quadratic in the length.
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        hs.append(h)
    return (torch.stack(hs, 1) if hs else b), h


def log_scan_reference(
    log_a: Sequence, log_b: Sequence, log_initial: Edge | None = None, starts: Starts | None = None
) -> tuple[Sequence, Edge]:
    """The definition, one token at a time. Any dtype."""
    h = log_b.new_full((log_b.shape[0], log_b.shape[2]), -torch.inf) if log_initial is None else log_initial
    resets = [None] * log_b.shape[1] if starts is None else starts[..., None].unbind(1)
    hs = []
    for a_t, b_t, start in zip(log_a.unbind(1), log_b.unbind(1), resets, strict=True):
        old = a_t + h
        h = torch.logaddexp(old if start is None else old.masked_fill(start, -torch.inf), b_t)
        hs.append(h)
    return (torch.stack(hs, 1) if hs else log_b), h


def scan(
    a: Sequence, b: Sequence, initial: Edge | None = None, starts: Starts | None = None, *, backend: str = "auto"
) -> tuple[Sequence, Edge]:
    """h for every token, and the last one.

    initial: the state before the first token, zeros if None. starts: True where a token begins a document, so that
    the state before it counts as zero. backend: "numba" reads a and b once and writes h once, and its backward is a
    scan in reverse; "reference" is the definition, on any device.

    Computed in float32, or in float64 if b is; h has the dtype of b, the last state that of the computation.
    Raises InputError for an unknown backend.
    """
    form = resolve(backend, ("numba", "reference"), b)
    dtype, given = fused.work_dtype(b.dtype), b.dtype
    initial = b.new_zeros(b.shape[0], b.shape[2], dtype=dtype) if initial is None else initial
    a, b, initial = a.to(dtype), b.to(dtype), initial.to(dtype)
    if form == "numba":
        h, final = _fused("scan", a, b, initial, starts)
    else:
        h, final = scan_reference(a, b, initial, starts)
    return h.to(given), final


def log_scan(
    log_a: Sequence,
    log_b: Sequence,
    log_initial: Edge | None = None,
    starts: Starts | None = None,
    *,
    backend: str = "auto",
) -> tuple[Sequence, Edge]:
    """log h for every token, and the last one, where h follows the recurrence of a = exp(log_a), b = exp(log_b).

    Each step adds to the larger of its two terms, so nothing overflows and precision doesn't depend on the length.
    log_initial: the logarithm of the state before the first token; None (or -inf) is a state of zero.
    starts, backend, precision and errors as in `scan`.
    """
    form = resolve(backend, ("numba", "reference"), log_b)
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


def _kernels(name: str, shape: torch.Size) -> tuple[Any, Any, list[tuple[int, int]]]:
    kernels: Any = import_module("lengthwise.ops.numba_scan")

    forward, backward = {
        "scan": (kernels.forward, kernels.backward),
        "log_scan": (kernels.log_forward, kernels.log_backward),
    }[name]
    units = shape[0] * -(-shape[2] // kernels.WIDTH)
    return forward, backward, fused.parts(units, shape.numel())


def _forward(name: str, a: Tensor, b: Tensor, initial: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    kernel, _, ranges = _kernels(name, b.shape)
    h, final = torch.empty(b.shape, dtype=b.dtype), torch.empty(initial.shape, dtype=b.dtype)
    given = fused.arrays(a, b, initial, starts, h, final)
    fused.run([partial(kernel, *given, first, last) for first, last in ranges])
    return h, final


def _backward(
    name: str, a: Tensor, h: Tensor, initial: Tensor, starts: Tensor, d_h: Tensor, d_final: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _, kernel, ranges = _kernels(name, a.shape)
    d_a, d_b = torch.empty(a.shape, dtype=a.dtype), torch.empty(a.shape, dtype=a.dtype)
    carried = d_final.clone(memory_format=torch.contiguous_format)
    given = fused.arrays(a, h, initial, starts, d_h, carried, d_a, d_b)
    fused.run([partial(kernel, *given, first, last) for first, last in ranges])
    return d_a, d_b, carried


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
        lambda a, _, initial, *__: (a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(initial.shape))
    )
    forward_op.register_autograd(gradients, setup_context=_save)


for _name in ("scan", "log_scan"):
    _register(_name)
