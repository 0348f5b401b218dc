"""Multi-dimensional exponential moving average: every channel is read through several averages of its own.

    h_t[c,n] = q[c,n] h_{t−1}[c,n] + x_t[c]          y_t[c] = Re Σ_n w[c,n] h_t[c,n]

x, y: [batch, length, channels], real; q, w: [channels, states] and h: [batch, channels, states], complex or real.
The same in every token, so it is also the convolution with K_l = Re Σ_n w q^l. Ma et al. 2022, arXiv 2209.10655 (real)
and 2024, arXiv 2404.08801 (complex), where the weight p of the input and the read-out g make w = g p.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lengthwise.ops import fused, memory
from lengthwise.ops.backend import resolve

Sequence = Float[Tensor, "batch length channels"]
Rates = Num[Tensor, "channels states"]
Averages = Num[Tensor, "batch channels states"]
Starts = Bool[Tensor, "batch length"]


def ema_reference(
    x: Sequence, q: Rates, w: Rates, initial: Averages | None = None, starts: Starts | None = None
) -> tuple[Sequence, Averages]:
    """The definition, one token at a time. Any dtype."""
    h = torch.zeros_like(q).expand(x.shape[0], -1, -1) if initial is None else initial
    resets = [None] * x.shape[1] if starts is None else starts[..., None, None].unbind(1)
    ys = []
    # Unbound once: a slice at every token would make the backward quadratic in the length.
    for x_t, start in zip(x.unbind(1), resets, strict=True):
        if start is not None:
            h = h.masked_fill(start, 0)
        h = q * h + x_t[..., None]
        ys.append((w * h).sum(-1).real)
    return (torch.stack(ys, 1) if ys else x), h


def ema(
    x: Sequence,
    q: Rates,
    w: Rates,
    initial: Averages | None = None,
    starts: Starts | None = None,
    *,
    backend: str = "auto",
) -> tuple[Sequence, Averages]:
    """y for every token, and the state after the last one.

    q, w: both real, or complex, which costs twice the arithmetic or more. initial: the state before the first token,
    zeros if None. starts: True where a token begins a document, so that the state before it counts as zero.
    backend: "numba" keeps h in the processor's cache, in O(batch · length · channels) of memory forward and backward;
        "torch" goes token by token through the definition and runs it again in the backward, chunk by chunk, on any
        device; "reference" is the definition.

    Gradients of complex numbers follow PyTorch's convention. Computed in float32, or in float64 if x is; y has the
    dtype of x, the state the computation's precision. Raises InputError for an unknown backend.
    """
    form = resolve(backend, ("numba", "torch", "reference"), x)
    dtype, given = fused.work_dtype(x.dtype), x.dtype
    numbers = fused.work_numbers(dtype, q, w, initial)
    if initial is None:
        initial = torch.zeros(x.shape[0], *q.shape, dtype=numbers, device=x.device)
    x, q, w, initial = x.to(dtype), q.to(numbers), w.to(numbers), initial.to(numbers)
    if form == "numba":
        y, final = _fused(x, planes(q), planes(w), planes(initial), fused.starts_or_none(starts, x))
        return y.to(given), join(final)
    run = _chunk_by_chunk if form == "torch" else ema_reference
    y, final = run(x, q, w, initial, starts)
    return y.to(given), final


def planes(z: Num[Tensor, "*rows channels states"]) -> Float[Tensor, "planes *rows states channels"]:
    """The real part and, of complex numbers, the imaginary part, each with the channels last."""
    return torch.view_as_real(z).movedim(-1, 0).mT if z.is_complex() else z.mT[None]


def join(parts: Float[Tensor, "planes *rows states channels"]) -> Num[Tensor, "*rows channels states"]:
    """The numbers of which these are the `planes`."""
    return torch.complex(parts[0].mT, parts[1].mT) if parts.shape[0] == 2 else parts[0].mT


def _chunk_by_chunk(
    x: Tensor, q: Tensor, w: Tensor, h: Tensor, starts: Tensor | None, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """The definition, keeping for the backward only the states between chunks."""
    ys, pieces = [], x.split(chunk, 1)
    borders = [None] * len(pieces) if starts is None else starts.split(chunk, 1)
    for piece, begins in zip(pieces, borders, strict=True):
        y, h = checkpoint(ema_reference, piece, q, w, h, begins, use_reentrant=False)
        ys.append(y)
    return torch.cat(ys, 1), h


def _fused(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    if fused.needs_graph(*tensors):
        y, final = torch.ops.lengthwise.ema(*tensors)
        return y, final
    return _forward(*tensors)


def _ranges(kernels: Any, x: Tensor, q: Tensor) -> list[tuple[int, int]]:
    return fused.parts(x.shape[0] * -(-x.shape[2] // kernels.WIDTH), x.numel() * q.shape[0] * q.shape[1])


def _forward(x: Tensor, q: Tensor, w: Tensor, initial: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    kernels: Any = import_module("lengthwise.ops.numba_ema")

    y = memory.empty(*x.shape, dtype=x.dtype)
    final = torch.empty(initial.shape, dtype=x.dtype)
    given = fused.arrays(x, q, w, initial, starts, y, final)
    fused.run([partial(kernels.forward, *given, *part) for part in _ranges(kernels, x, q)])
    return y, final


def _backward(
    d_y: Tensor, d_final: Tensor, x: Tensor, q: Tensor, w: Tensor, initial: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernels: Any = import_module("lengthwise.ops.numba_ema")

    d_x, d_initial = memory.empty(*x.shape, dtype=x.dtype), torch.empty(initial.shape, dtype=x.dtype)
    d_q, d_w = (torch.empty(initial.shape, dtype=x.dtype) for _ in range(2))
    given = fused.arrays(d_y, d_final, x, q, w, initial, starts, d_x, d_q, d_w, d_initial)
    fused.run([partial(kernels.backward, *given, *part) for part in _ranges(kernels, x, q)])
    return d_x, d_q.sum(1), d_w.sum(1), d_initial


_forward_op = torch.library.custom_op(
    "lengthwise::ema",
    _forward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor q, Tensor w, Tensor initial, Tensor starts) -> (Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    "lengthwise::ema_backward",
    _backward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor d_y, Tensor d_final, Tensor x, Tensor q, Tensor w, Tensor initial, Tensor starts)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)


@_forward_op.register_fake
def _forward_shapes(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(others[2].shape)


@_backward_op.register_fake
def _backward_shapes(_: Tensor, __: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(v.new_empty(v.shape) for v in inputs[:4])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_y: Tensor | None, d_final: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: a checkpoint computes again what it gives
    x, _, _, initial, _ = saved
    d_y = torch.zeros_like(x) if d_y is None else d_y
    d_final = torch.zeros_like(initial) if d_final is None else d_final
    return (*torch.ops.lengthwise.ema_backward(d_y, d_final, *saved), None)


_forward_op.register_autograd(_gradients, setup_context=_save)
