"""The weighted average of RWKV: of the values so far, by the exponentials of their keys, which fade at a rate of each
channel's own.

    y_t = (Σ_{i<t} exp(k_i − (t−1−i) w) v_i + exp(u + k_t) v_t) / (Σ_{i<t} exp(k_i − (t−1−i) w) + exp(u + k_t))

    k, v, y: [batch, length, channels]     w > 0 (decay), u (bonus): [channels]

The token before the present one hasn't faded yet, and the present one weighs exp(u) instead. The state is a numerator
a exp(p), a denominator b exp(p) and their running maximum p, so that no key overflows:

    y_t = (exp(p − q) a + exp(u + k_t − q) v_t) / (exp(p − q) b + exp(u + k_t − q))        q = max(p, u + k_t)
    a ← exp(p − w − q) a + exp(k_t − q) v_t      b ← exp(p − w − q) b + exp(k_t − q)      p ← q = max(p − w, k_t)

    state: a, b and p, [batch, 3, channels]; of an empty one a = b = 0, p = −1e38

Peng et al. 2023, arXiv 2305.13048.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lengthwise.ops import fused, memory
from lengthwise.ops.backend import resolve

EMPTY = -1e38
"""The maximum of an empty state."""

Sequence = Float[Tensor, "batch length channels"]
Rates = Float[Tensor, " channels"]
Averages = Float[Tensor, "batch 3 channels"]


def empty_state(like: Sequence, dtype: torch.dtype | None = None) -> Averages:
    """The state before any token."""
    state = like.new_zeros(like.shape[0], 3, like.shape[2], dtype=dtype)
    state[:, 2] = EMPTY
    return state


def wkv_reference(
    k: Sequence,
    v: Sequence,
    decay: Rates,
    bonus: Rates,
    initial: Averages | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
) -> tuple[Sequence, Sequence, Averages]:
    """The definition, one token at a time: y, the logarithm of its denominator, and the last state. Any dtype."""
    nothing = empty_state(k)
    a, b, p = (nothing if initial is None else initial).unbind(1)
    resets = [None] * k.shape[1] if starts is None else starts[..., None].unbind(1)
    ys, logs = [], []
    for k_t, v_t, start in zip(k.unbind(1), v.unbind(1), resets, strict=True):
        if start is not None:
            a, b, p = (torch.where(start, e, x) for e, x in zip(nothing.unbind(1), (a, b, p), strict=True))
        q = torch.maximum(p, bonus + k_t)
        past, present = torch.exp(p - q), torch.exp(bonus + k_t - q)
        total = past * b + present
        ys.append((past * a + present * v_t) / total)
        logs.append(q + total.log())
        q = torch.maximum(p - decay, k_t)
        past, present = torch.exp(p - decay - q), torch.exp(k_t - q)
        a, b, p = past * a + present * v_t, past * b + present, q
    y, log = (torch.stack(ys, 1), torch.stack(logs, 1)) if ys else (v, k)
    return y, log, torch.stack([a, b, p], 1)


def wkv(
    k: Sequence,
    v: Sequence,
    decay: Rates,
    bonus: Rates,
    initial: Averages | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
    *,
    backend: str = "auto",
) -> tuple[Sequence, Averages]:
    """y for every token in the dtype of v, and the state after the last one.

    decay: w > 0. bonus: u. initial: the state before the first token, an empty one if None. starts: True where a token
    begins a document, before which the state is empty. backend: "numba" reads k and v once and keeps in memory only
    the states between chunks; "reference" is the definition, on any device.

    Computed in float32, or in float64 if v is. Raises InputError for an unknown backend.
    """
    y, _, state = _run(k, v, decay, bonus, initial, starts, backend, False)
    return y, state


def wkv_with_weights(
    k: Sequence,
    v: Sequence,
    decay: Rates,
    bonus: Rates,
    initial: Averages | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
    *,
    backend: str = "auto",
) -> tuple[Sequence, Sequence, Averages]:
    """As `wkv`, with the logarithm of y's denominator after y, to average y further with others by their weights."""
    return _run(k, v, decay, bonus, initial, starts, backend, True)


def _run(
    k: Sequence,
    v: Sequence,
    decay: Rates,
    bonus: Rates,
    initial: Averages | None,
    starts: Bool[Tensor, "batch length"] | None,
    backend: str,
    weigh: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    form = resolve(backend, ("numba", "reference"), v)
    dtype, given = fused.work_dtype(v.dtype), v.dtype
    initial = empty_state(v, dtype) if initial is None else initial
    k, v, decay, bonus, initial = (x.to(dtype) for x in (k, v, decay, bonus, initial))
    if form == "reference":
        y, log, state = wkv_reference(k, v, decay, bonus, initial, starts)
    elif fused.needs_graph(k, v, decay, bonus, initial):
        borders = fused.starts_or_none(starts, k)
        y, log, state, _ = torch.ops.lengthwise.wkv(k, v, decay, bonus, initial, borders, weigh, True)
    else:
        y, log, state, _ = _forward(k, v, decay, bonus, initial, fused.starts_or_none(starts, k), weigh, False)
    return y.to(given), log, state


def _ranges(kernels: Any, shape: torch.Size) -> list[tuple[int, int]]:
    return fused.parts(shape[0] * -(-shape[2] // kernels.WIDTH), 8 * shape.numel())


def _forward(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, initial: Tensor, starts: Tensor, weigh: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernels: Any = import_module("lengthwise.ops.numba_wkv")

    batch, length, channels = k.shape
    y, state = memory.empty(*k.shape, dtype=k.dtype), initial.clone(memory_format=torch.contiguous_format)
    denominator, high = (memory.empty(*(k.shape if weigh else (0, 0, 0)), dtype=k.dtype) for _ in range(2))
    kept = memory.empty(batch, _chunks(length) if keep else 0, 3, channels, dtype=k.dtype)
    given = fused.arrays(k, v, decay, bonus, starts, state, y, denominator, high, kept)
    fused.run([partial(kernels.forward, *given, *part) for part in _ranges(kernels, k.shape)])
    return y, high.add_(denominator.log_()), state, kept


def _chunks(length: Any) -> Any:
    kernels: Any = import_module("lengthwise.ops.numba_wkv")

    return -(-length // kernels.CHUNK)


def _backward(
    d_y: Tensor,
    d_log: Tensor,
    d_state: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    bonus: Tensor,
    initial: Tensor,
    starts: Tensor,
    state: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    kernels: Any = import_module("lengthwise.ops.numba_wkv")

    d_k, d_v = (memory.empty(*k.shape, dtype=k.dtype) for _ in range(2))
    d_decay, d_bonus = (torch.zeros(k.shape[0], k.shape[2], dtype=k.dtype) for _ in range(2))
    d_initial = torch.empty(initial.shape, dtype=k.dtype)
    given = fused.arrays(k, v, decay, bonus, starts, initial, state, kept, d_y, d_log, d_state)
    results = fused.arrays(d_k, d_v, d_decay, d_bonus, d_initial)
    fused.run([partial(kernels.backward, *given, *results, *part) for part in _ranges(kernels, k.shape)])
    return d_k, d_v, d_decay.sum(0), d_bonus.sum(0), d_initial


_forward_op = torch.library.custom_op(
    "lengthwise::wkv",
    _forward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor k, Tensor v, Tensor decay, Tensor bonus, Tensor initial, Tensor starts, bool weigh, bool keep)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    "lengthwise::wkv_backward",
    _backward,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor d_y, Tensor d_log, Tensor d_state, Tensor k, Tensor v, Tensor decay, Tensor bonus, Tensor initial,"
    " Tensor starts, Tensor state, Tensor kept) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_forward_op.register_fake
def _forward_shapes(k: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    initial, weigh, keep = others[3], others[5], others[6]
    kept = k.new_empty(k.shape[0], _chunks(k.shape[1]) if keep else 0, 3, k.shape[2])
    return k.new_empty(k.shape), k.new_empty(k.shape if weigh else (0, 0, 0)), initial.new_empty(initial.shape), kept


@_backward_op.register_fake
def _backward_shapes(_: Tensor, __: Tensor, ___: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:5])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    *tensors, _, _ = inputs
    ctx.save_for_backward(*tensors, output[2], output[3])
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, d_y: Tensor | None, d_log: Tensor | None, d_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: a checkpoint computes again what it gives
    k, initial = saved[0], saved[4]
    d_y, d_log = (torch.zeros_like(k) if d is None or not d.numel() else d for d in (d_y, d_log))
    d_state = torch.zeros_like(initial) if d_state is None else d_state
    results = torch.ops.lengthwise.wkv_backward(d_y, d_log, d_state, *saved)
    return (*results, None, None, None)


_forward_op.register_autograd(_gradients, setup_context=_save)
