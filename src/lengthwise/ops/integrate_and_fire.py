"""Leaky integrate-and-fire neurons whose time is the sequence: what fires is 1, all else 0.

    H_t = U_{t-1} + (x_t - U_{t-1}) / τ          charge, towards the input
    S_t = Θ(H_t - 1)                             spike, Θ(v) = 1 for v ≥ 0, else 0
    U_t = H_t (1 - S_t)                          a spike empties the membrane

    x, S: [batch, length, channels]     U: [batch, channels]

Backward, the derivative of Θ(v) is taken as that of an arctangent, α/2 / (1 + (π/2 α v)²), also through the reset. At
rest it is 0.092 for α = 2, so that gradients flow where nothing fires.

Zhu et al. 2023, arXiv 2302.13939; surrogate gradients, Fang et al. 2021, arXiv 2007.05785.
"""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.ops import fused, memory
from lengthwise.ops.backend import resolve

ALPHA = 2.0
"""Steepness of the arctangent."""

Sequence = Float[Tensor, "batch length channels"]
Membrane = Float[Tensor, "batch channels"]


def spike(v: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Θ(v), whose derivative is that of the arctangent. NaN stays NaN."""
    smooth = torch.atan(math.pi / 2 * ALPHA * v) / math.pi
    # The value is exactly Θ(v), since a number less itself is 0; the gradient is that of `smooth`.
    return (v >= 0).to(v.dtype) + (smooth - smooth.detach())


def integrate_and_fire_reference(
    x: Sequence, tau: float = 2.0, initial: Membrane | None = None, starts: Bool[Tensor, "batch length"] | None = None
) -> tuple[Sequence, Membrane]:
    """The definition, one token at a time. Any dtype."""
    membrane = x.new_zeros(x.shape[0], x.shape[2]) if initial is None else initial
    resets = [None] * x.shape[1] if starts is None else starts[..., None].unbind(1)
    spikes = []
    for x_t, start in zip(x.unbind(1), resets, strict=True):
        if start is not None:
            membrane = membrane.masked_fill(start, 0)
        charge = membrane + (x_t - membrane) / tau
        fired = spike(charge - 1)
        membrane = charge * (1 - fired)
        spikes.append(fired)
    return (torch.stack(spikes, 1) if spikes else x), membrane


def integrate_and_fire(
    x: Sequence,
    tau: float = 2.0,
    initial: Membrane | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
    *,
    backend: str = "auto",
) -> tuple[Sequence, Membrane]:
    """The spikes of every token in the dtype of x, and the membrane after the last one.

    tau: τ ≥ 1, the tokens over which the membrane leaks. initial: the membrane before the first token, zeros if None.
    starts: True where a token begins a document, whose membrane is empty. backend: "numba" or "reference".

    Computed in float32, or in float64 if x is. Raises InputError for τ below 1 and for an unknown backend.
    """
    if not tau >= 1:
        raise InputError(f"tau must be at least 1, got {tau}")
    form = resolve(backend, ("numba", "reference"), x)
    dtype, given = fused.work_dtype(x.dtype), x.dtype
    initial = x.new_zeros(x.shape[0], x.shape[2], dtype=dtype) if initial is None else initial.to(dtype)
    x = x.to(dtype)
    if form == "reference":
        spikes, membrane = integrate_and_fire_reference(x, tau, initial, starts)
        return spikes.to(given), membrane
    borders = fused.starts_or_none(starts, x)
    if fused.needs_graph(x, initial):
        spikes, membrane, _ = torch.ops.lengthwise.integrate_and_fire(x, initial, borders, float(tau))
    else:
        spikes, membrane, _ = _forward(x, initial, borders, tau)
    return spikes.to(given), membrane


def _ranges(kernels: Any, shape: torch.Size) -> list[tuple[int, int]]:
    return fused.parts(shape[0] * -(-shape[2] // kernels.WIDTH), shape.numel())


def _forward(x: Tensor, initial: Tensor, starts: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    kernels: Any = import_module("lengthwise.ops.numba_integrate_and_fire")

    charge, spikes = (memory.empty(*x.shape, dtype=x.dtype) for _ in range(2))
    membrane = initial.clone(memory_format=torch.contiguous_format)
    x_, starts_, membrane_, charge_, spikes_ = fused.arrays(x, starts, membrane, charge, spikes)
    given = (x_, starts_, x_.dtype.type(1 / tau), membrane_, charge_, spikes_)
    fused.run([partial(kernels.forward, *given, *part) for part in _ranges(kernels, x.shape)])
    return spikes, membrane, charge


def _backward(
    d_spikes: Tensor, d_membrane: Tensor, charge: Tensor, starts: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    kernels: Any = import_module("lengthwise.ops.numba_integrate_and_fire")

    d_x = memory.empty(*charge.shape, dtype=charge.dtype)
    carried = d_membrane.clone(memory_format=torch.contiguous_format)
    charge_, starts_, d_spikes_, carried_, d_x_ = fused.arrays(charge, starts, d_spikes, carried, d_x)
    constants = (charge_.dtype.type(c) for c in (1 / tau, ALPHA / 2, math.pi / 2 * ALPHA))
    given = (charge_, starts_, d_spikes_, *constants, carried_, d_x_)
    fused.run([partial(kernels.backward, *given, *part) for part in _ranges(kernels, charge.shape)])
    return d_x, carried


_forward_op = torch.library.custom_op(
    "lengthwise::integrate_and_fire",
    _forward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor initial, Tensor starts, float tau) -> (Tensor, Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    "lengthwise::integrate_and_fire_backward",
    _backward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor d_spikes, Tensor d_membrane, Tensor charge, Tensor starts, float tau) -> (Tensor, Tensor)",
)


@_forward_op.register_fake
def _forward_shapes(x: Tensor, initial: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), initial.new_empty(initial.shape), x.new_empty(x.shape)


@_backward_op.register_fake
def _backward_shapes(_: Tensor, d_membrane: Tensor, charge: Tensor, *__: Any) -> tuple[Tensor, Tensor]:
    return charge.new_empty(charge.shape), d_membrane.new_empty(d_membrane.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, starts, ctx.tau = inputs
    ctx.save_for_backward(output[2], starts)
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, d_spikes: Tensor | None, d_membrane: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    charge, starts = ctx.saved_tensors
    d_spikes = torch.zeros_like(charge) if d_spikes is None else d_spikes
    d_membrane = torch.zeros_like(charge[:, :1]).sum(1) if d_membrane is None else d_membrane
    return (
        *torch.ops.lengthwise.integrate_and_fire_backward(d_spikes, d_membrane, charge, starts, ctx.tau),
        None,
        None,
    )


_forward_op.register_autograd(_gradients, setup_context=_save)
