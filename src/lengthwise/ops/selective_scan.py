"""Selective scan: the diagonal state space recurrence whose step, input map and output map depend on the token.

    h_t[e,n] = exp(dt_t[e] A[e,n]) h_{t-1}[e,n] + dt_t[e] B_t[n] x_t[e]
    y_t[e]   = sum_n C_t[n] h_t[e,n] + D[e] x_t[e]

x, dt, y: [batch, length, channels]; A: [channels, state]; B, C: [batch, length, state]; D: [channels];
h: [batch, channels, state]. Gu and Dao 2023, arXiv 2312.00752 (operator S6).
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lengthwise.ops import fused, memory
from lengthwise.ops.backend import resolve

Size = int | torch.SymInt


def selective_scan_reference(
    x: Float[Tensor, "batch length channels"],
    dt: Float[Tensor, "batch length channels"],
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, " channels"] | None = None,
    initial: Float[Tensor, "batch channels state"] | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels state"]]:
    """The definition, one token at a time. Any dtype."""
    batch, length, channels = x.shape
    h = x.new_zeros(batch, channels, A.shape[1]) if initial is None else initial
    resets = [None] * length if starts is None else starts[..., None, None].unbind(1)
    ys = []
    # Unbound once: a slice at every token would make the backward quadratic in the length.
    for x_t, dt_t, B_t, C_t, start in zip(*(v.unbind(1) for v in (x, dt, B, C)), resets, strict=True):
        if start is not None:
            h = h.masked_fill(start, 0)
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * x_t)[..., None] * B_t[:, None]
        ys.append(torch.einsum("ben,bn->be", h, C_t))
    y = torch.stack(ys, 1) if ys else x
    return (y if D is None else y + D * x), h


def selective_scan(
    x: Float[Tensor, "batch length channels"],
    dt: Float[Tensor, "batch length channels"],
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, " channels"] | None = None,
    initial: Float[Tensor, "batch channels state"] | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
    *,
    backend: str = "auto",
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels state"]]:
    """y for every token, and the state after the last one.

    dt: the step, after its softplus. D: None for no direct path. initial: the state before the first token, zeros if
    None. starts: True where a token begins a document, so that the state before it counts as zero.
    backend: "numba" keeps h in the processor's cache, in O(batch · length · channels) of memory forward and backward;
        "torch" goes token by token through the definition and runs it again in the backward, chunk by chunk, on any
        device; "reference" is the definition.

    Computed in float32, or in float64 if x is; y has the dtype of x, the state that of the computation.
    Raises InputError for an unknown backend.
    """
    form = resolve(backend, ("numba", "torch", "reference"), x)
    dtype, given = fused.work_dtype(x.dtype), x.dtype
    D = x.new_zeros(x.shape[2], dtype=dtype) if D is None else D
    initial = x.new_zeros(x.shape[0], *A.shape, dtype=dtype) if initial is None else initial
    x, dt, A, B, C, D, initial = (v.to(dtype) for v in (x, dt, A, B, C, D, initial))
    if form == "numba":
        y, final = _fused(x, dt, A, B, C, D, initial, fused.starts_or_none(starts, x))
    elif form == "torch":
        y, final = _chunk_by_chunk(x, dt, A, B, C, D, initial, starts)
    else:
        y, final = selective_scan_reference(x, dt, A, B, C, D, initial, starts)
    return y.to(given), final


def _chunk_by_chunk(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    h: Tensor,
    starts: Tensor | None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """The definition, keeping for the backward only the states between chunks."""
    ys = []
    pieces = [v.split(chunk, 1) for v in (x, dt, B, C)]
    borders = [None] * len(pieces[0]) if starts is None else starts.split(chunk, 1)
    for x_c, dt_c, B_c, C_c, starts_c in zip(*pieces, borders, strict=True):
        y, h = checkpoint(selective_scan_reference, x_c, dt_c, A, B_c, C_c, D, h, starts_c, use_reentrant=False)
        ys.append(y)
    return torch.cat(ys, 1), h


def _fused(*tensors: Any) -> tuple[Tensor, Tensor]:
    if fused.needs_graph(*tensors):
        y, final, _ = torch.ops.lengthwise.selective_scan(*tensors, torch.is_grad_enabled())
    else:
        y, final, _ = _forward(*tensors, keep=False)  # type: ignore[misc]
    return y, final


def _chunk(states: Size) -> Any:
    """Tokens between two kept states: with at least as many as states, those take no more memory than x."""
    return torch.sym_max(32, states)


def _blocks(channels: Size, width: Size) -> Any:
    return -(-channels // width)


def _forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, initial: Tensor, starts: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernels: Any = import_module("lengthwise.ops.numba_selective_scan")

    (batch, length, channels), states = x.shape, A.shape[1]
    chunk = _chunk(states)
    y = memory.empty(batch, length, channels, dtype=x.dtype)
    final = torch.empty(batch, channels, states, dtype=x.dtype)
    kept = memory.empty(batch, _blocks(length, chunk) if keep else 0, states, channels, dtype=x.dtype)
    given = fused.arrays(x, dt, A, B, C, D, initial, starts, y, final, kept)
    ranges = fused.parts(batch * _blocks(channels, kernels.WIDTH), x.numel() * states)
    fused.run([partial(kernels.forward, *given, chunk, first, last) for first, last in ranges])
    return y, final, kept


def _backward(
    d_y: Tensor,
    d_final: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    starts: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    kernels: Any = import_module("lengthwise.ops.numba_selective_scan")

    (batch, length, channels), states = x.shape, A.shape[1]
    ranges = fused.parts(batch * _blocks(channels, kernels.WIDTH), x.numel() * states)
    d_x, d_dt = (memory.empty(batch, length, channels, dtype=x.dtype) for _ in range(2))
    d_A, d_initial = (torch.empty(batch, channels, states, dtype=x.dtype) for _ in range(2))
    d_B, d_C = (torch.zeros(len(ranges), batch, length, states, dtype=x.dtype) for _ in range(2))
    d_D = torch.zeros(batch, channels, dtype=x.dtype)
    given = fused.arrays(d_y, d_final, x, dt, A, B, C, D, starts, kept)
    results = fused.arrays(d_x, d_dt, d_A, d_B, d_C, d_D, d_initial)
    fused.run(
        [
            partial(kernels.backward, *given, _chunk(states), *results, part, first, last)
            for part, (first, last) in enumerate(ranges)
        ]
    )
    return d_x, d_dt, d_A.sum(0), d_B.sum(0), d_C.sum(0), d_D.sum(0), d_initial


_forward_op = torch.library.custom_op(
    "lengthwise::selective_scan",
    _forward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor D, Tensor initial, Tensor starts, bool keep)"
    " -> (Tensor, Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    "lengthwise::selective_scan_backward",
    _backward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor d_y, Tensor d_final, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor D, Tensor starts,"
    " Tensor kept) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_forward_op.register_fake
def _forward_shapes(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, A, _, _, _, initial, _, keep = others
    chunks = _blocks(x.shape[1], _chunk(A.shape[1])) if keep else 0
    kept = x.new_empty(x.shape[0], chunks, A.shape[1], x.shape[2])
    return x.new_empty(x.shape), initial.new_empty(initial.shape), kept


@_backward_op.register_fake
def _backward_shapes(_: Tensor, d_final: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(v.new_empty(v.shape) for v in (*inputs[:6], d_final))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, dt, A, B, C, D, _initial, starts, _keep = inputs
    ctx.save_for_backward(x, dt, A, B, C, D, starts, output[2])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_y: Tensor | None, d_final: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, dt, A, B, C, D, starts, kept = ctx.saved_tensors
    d_y = torch.zeros_like(x) if d_y is None else d_y
    d_final = x.new_zeros(x.shape[0], *A.shape) if d_final is None else d_final
    results = torch.ops.lengthwise.selective_scan_backward(d_y, d_final, x, dt, A, B, C, D, starts, kept)
    return (*results, None, None)


_forward_op.register_autograd(_gradients, setup_context=_save)
