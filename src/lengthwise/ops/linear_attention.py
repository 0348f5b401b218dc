"""Linear attention: a matrix-state recurrence, the core of linear Transformers, gated linear attention and Mamba-2.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_tᵀ        o_t = S_tᵀ q_t

    q, k: [batch, length, heads, key_dim]     v, o: [batch, length, heads, value_dim]
    S:    [batch, heads, key_dim, value_dim]
    g:    none, [batch, length, heads] (one per head) or [batch, length, heads, key_dim] (one per channel), g ≤ 0

Neither scale nor normaliser is inside. The fast form works on chunks of C tokens, all in matrix products:

    O = (within ∘ Q Kᵀ) V + (enter ∘ Q) S          S ← carry S + (leave ∘ K)ᵀ V

with the weights of `chunk_decay`. It keeps the state before each chunk and recomputes the rest in its backward.

Katharopoulos et al. 2020, arXiv 2006.16236; with decay, Yang et al. 2023, arXiv 2312.06635, and Dao and Gu 2024,
arXiv 2405.21060.
"""

# ruff: noqa: ARG001 - what stands for an op in tracing takes all that the op takes

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.ops.backend import resolve
from lengthwise.ops.chunk_decay import ChannelDecay, HeadDecay, transposed, weighted
from lengthwise.ops.chunks import put, spans, split, state_dtype

CHUNK = 128
"""Tokens in a chunk, the fastest measured for heads of 64."""

CHANNEL_CHUNK = 64
"""The same with a decay per channel."""

Keys = Float[Tensor, "batch length heads key_dim"]
Values = Float[Tensor, "batch length heads value_dim"]
Matrix = Float[Tensor, "batch heads key_dim value_dim"]
Decay = Float[Tensor, "batch length heads"] | Float[Tensor, "batch length heads key_dim"]


def linear_attention_reference(
    q: Keys,
    k: Keys,
    v: Values,
    decay: Decay | None = None,
    initial: Matrix | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
) -> tuple[Values, Matrix]:
    """The definition, one step at a time. Any dtype."""
    dtype = state_dtype(q, k, v, decay, initial)
    state = v.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1], dtype=dtype) if initial is None else initial.to(dtype)
    decay = with_starts(decay, starts)
    factors = [None] * q.shape[1] if decay is None else (decay if decay.ndim == 4 else decay.unsqueeze(-1)).unbind(1)
    outputs = []
    for q_t, k_t, v_t, g_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), factors, strict=True):
        if g_t is not None:
            state = state * g_t.to(dtype).exp().unsqueeze(-1)
        state = state + k_t.to(dtype).unsqueeze(-1) * v_t.to(dtype).unsqueeze(-2)
        outputs.append((q_t.to(dtype).unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1).to(v.dtype) if outputs else v.clone(), state


def linear_attention(
    q: Keys,
    k: Keys,
    v: Values,
    decay: Decay | None = None,
    initial: Matrix | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
    *,
    chunk: int | None = None,
    backend: str = "auto",
) -> tuple[Values, Matrix]:
    """o_t for every t in the dtype of v, and the last S in float32 (float64 if an input is).

    decay: log decay g ≤ 0, −∞ forgets everything. For g ≤ 0 no exponent is positive, so no decay overflows; g > 0
        grows the state as the definition does.
    initial: S before the first token; zero where it is None.
    starts: True where a token sees nothing before it.
    chunk: tokens in a chunk, a power of two; 128, or 64 with a decay per channel, where it is None.
    """
    if chunk is not None and (chunk < 1 or chunk & (chunk - 1)):
        raise InputError(f"chunk must be a power of two, got {chunk}")
    if resolve(backend, ("torch", "reference"), q) == "reference" or q.shape[1] == 0:
        return linear_attention_reference(q, k, v, decay, initial, starts)
    if q.shape[1] == 1:
        return step(q, k, v, decay, initial, starts)
    size = chunk or (CHANNEL_CHUNK if decay is not None and decay.ndim == 4 else CHUNK)
    size = min(size, 1 << (q.shape[1] - 1).bit_length())
    tensors = (q, k, v, decay, initial)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    o, final, _ = chunked(q, k, v, with_starts(decay, starts), initial, size, keep)
    return o, final


def with_starts(decay: Tensor | None, starts: Tensor | None) -> Tensor | None:
    """The log decay with −∞ where a document starts; [batch, length, 1] where there was none."""
    if starts is None:
        return decay
    if decay is None:
        decay = torch.zeros(*starts.shape, 1, device=starts.device)
    return decay.masked_fill(starts.reshape(*starts.shape, *[1] * (decay.ndim - 2)), -torch.inf)


def step(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, initial: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token: the recurrence itself, in as few operations as there are."""
    dtype = state_dtype(q, k, v, decay, initial)
    with torch.autocast(q.device.type, enabled=False):
        key, value = k.squeeze(1).to(dtype).unsqueeze(-1), v.squeeze(1).to(dtype).unsqueeze(-2)
        decay = with_starts(decay, starts)
        if initial is None:
            state = key * value
        elif decay is None:
            state = torch.addcmul(initial.to(dtype), key, value)
        else:
            factor = decay.squeeze(1).to(dtype).exp()
            factor = factor[..., None, None] if decay.ndim == 3 else factor[..., None]
            state = torch.addcmul(initial * factor, key, value)
        return (q.transpose(1, 2).to(dtype) @ state).transpose(1, 2).to(v.dtype), state


def weights(decay: Tensor | None, begin: int, end: int, chunk: int, rows: int, dtype: torch.dtype) -> Any:
    """The weights of the chunks from `begin` to `end`."""
    if decay is None:
        return HeadDecay()
    if decay.ndim == 4:
        return ChannelDecay.of(split(decay, begin, end, chunk, dtype))
    return HeadDecay.of(split(decay.unsqueeze(-1), begin, end, chunk, torch.float64), rows, dtype)


@torch.library.custom_op(
    "lengthwise::linear_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initial, int chunk, bool keep)"
    " -> (Tensor, Tensor, Tensor)",
)
def chunked(q, k, v, decay, initial, chunk, keep):
    """o, the last state, and the state before every chunk and after the last (none of them unless `keep`)."""
    (batch, length, heads, key_dim), value_dim = q.shape, v.shape[-1]
    dtype, rows = state_dtype(q, k, v, decay, initial), batch * heads
    state = q.new_zeros(rows, key_dim, value_dim, dtype=dtype) if initial is None else initial.flatten(0, 1).to(dtype)
    kept = state.new_empty(-(-length // chunk) + 1, *state.shape) if keep else None
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    with torch.autocast(q.device.type, enabled=False):
        for begin, end in spans(length, chunk, rows):
            queries, keys, values = (split(x, begin, end, chunk, dtype) for x in (q, k, v))
            w = weights(decay, begin, end, chunk, rows, dtype)
            written = weighted(keys, w.leave).mT @ values
            states = states_of(kept, begin // chunk, written)
            states[0] = state
            for n in range(len(written)):
                torch.add(
                    weighted(states[n], w.carry if w.carry is None else w.carry[n]), written[n], out=states[n + 1]
                )
            state = states[-1]
            out = w.scores(queries, keys) @ values
            out += weighted(queries, w.enter) @ states[:-1]
            put(o, begin, out)
    final = state.reshape(batch, heads, key_dim, value_dim).clone()
    return o, final, final.new_empty(0) if kept is None else kept


@chunked.register_fake
def _(q, k, v, decay, initial, chunk, keep):
    batch, length, heads, key_dim = q.shape
    final = q.new_empty(batch, heads, key_dim, v.shape[-1], dtype=state_dtype(q, k, v, decay, initial))
    kept = (-(-length // chunk) + 1, batch * heads, *final.shape[2:]) if keep else (0,)
    return torch.empty_like(v, memory_format=torch.contiguous_format), final, final.new_empty(kept)


@torch.library.custom_op(
    "lengthwise::linear_attention_backward",
    mutates_args=(),
    schema="(Tensor grad_o, Tensor grad_final, Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor kept, int chunk)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def chunked_backward(grad_o, grad_final, q, k, v, decay, kept, chunk):
    """Gradients of q, k, v, decay (empty where there is none) and the initial state, from the last chunk to the first.

    With G the sum of log decays from the beginning, q enters only as q exp(G) and k only as k exp(−G), so that
    ∂/∂G_t = q_t ∂/∂q_t − k_t ∂/∂k_t, plus S ∂/∂S where the chunk ends; a log decay moves every later G.
    """
    (batch, length, heads, _), dtype = q.shape, kept.dtype
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    grad_decay = q.new_empty(0) if decay is None else torch.empty_like(decay, memory_format=torch.contiguous_format)
    grad_state = grad_final.flatten(0, 1).to(dtype)
    with torch.autocast(q.device.type, enabled=False):
        for begin, end in reversed(spans(length, chunk, batch * heads)):
            queries, keys, values, grad = (split(x, begin, end, chunk, dtype) for x in (q, k, v, grad_o))
            w = weights(decay, begin, end, chunk, batch * heads, dtype)
            states = kept[begin // chunk : -(-end // chunk) + 1]
            read = weighted(queries, w.enter).mT @ grad
            grad_after = torch.empty_like(read)
            for n in reversed(range(len(read))):
                grad_after[n] = grad_state
                grad_state = weighted(grad_state, None if w.carry is None else w.carry[n]) + read[n]
            grad_v = w.scores(queries, keys).mT @ grad
            grad_v += weighted(keys, w.leave) @ grad_after
            grad_q, grad_k = w.scores_backward(grad @ transposed(values), queries, keys)
            grad_q += weighted(grad @ transposed(states[:-1]), w.enter)
            grad_k += weighted(values @ transposed(grad_after), w.leave)
            for whole, part in zip(grads, (grad_q, grad_k, grad_v), strict=True):
                put(whole, begin, part)
            if decay is not None:
                moved = grad_q * queries - grad_k * keys
                moved[..., -1, :] += (grad_after * states[1:]).sum(-1)
                put_decay(grad_decay, begin, moved.flip(-2).cumsum(-2).flip(-2), batch)
    return *grads, grad_decay, grad_state.reshape(batch, heads, *grad_state.shape[1:]).clone()


def states_of(kept: Tensor | None, chunk: int, written: Tensor) -> Tensor:
    """Where the states before the chunks of a span go, and the one after it."""
    count = len(written) + 1
    return written.new_empty(count, *written.shape[1:]) if kept is None else kept[chunk : chunk + count]


def put_decay(whole: Tensor, begin: int, moved: Tensor, batch: int) -> None:
    """Write gradients per key channel [chunks, rows, chunk, key_dim], summed over what shares one log decay."""
    if whole.ndim == 4:
        return put(whole, begin, moved)
    moved = moved.sum(-1, keepdim=True)
    if whole.shape[-1] == 1:
        moved = moved.unflatten(1, (batch, -1)).sum(2)
    put(whole.unsqueeze(-1), begin, moved)


@chunked_backward.register_fake
def _(grad_o, grad_final, q, k, v, decay, kept, chunk):
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    grad_decay = q.new_empty(0) if decay is None else torch.empty_like(decay, memory_format=torch.contiguous_format)
    return *grads, grad_decay, grad_final.new_empty(grad_final.shape, dtype=kept.dtype)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what the backward reads."""
    q, k, v, decay, initial, chunk, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, decay, output[2])
    ctx.chunk, ctx.initial = chunk, None if initial is None else initial.dtype


def differentiate(ctx: Any, grad_o: Tensor | None, grad_final: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    """Gradients of all arguments of `chunked`."""
    q, k, v, decay, kept = ctx.saved_tensors
    grad_o = torch.zeros_like(v) if grad_o is None else grad_o
    if grad_final is None:
        grad_final = kept.new_zeros(q.shape[0], q.shape[2], *kept.shape[2:])
    *grads, grad_decay, grad_initial = chunked_backward(grad_o, grad_final, q, k, v, decay, kept, ctx.chunk)
    wanted = None if ctx.initial is None else grad_initial.to(ctx.initial)
    return *grads, None if decay is None else grad_decay, wanted, None, None


chunked.register_autograd(differentiate, setup_context=save)
