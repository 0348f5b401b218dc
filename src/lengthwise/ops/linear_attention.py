"""Linear attention: a matrix-state recurrence, the core of linear Transformers, gated linear attention and Mamba-2.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_tᵀ        o_t = S_tᵀ q_t

    q, k: [batch, length, groups, key_dim]     v, o: [batch, length, heads, value_dim]
    S:    [batch, heads, key_dim, value_dim]
    g:    none, [batch, length, heads] (one per head) or [batch, length, heads, key_dim] (one per channel), g ≤ 0

Heads in a row share the queries and keys of their group, as in grouped-query attention; most often groups = heads, and
in Mamba-2 there is one group. Neither scale nor normaliser is inside. The fast form works on chunks of C tokens, all
in matrix products:

    O = (within ∘ Q Kᵀ) V + (enter ∘ Q) S          S ← carry S + (leave ∘ K)ᵀ V

with the weights of `chunk_decay`. It keeps the state before each chunk and recomputes the rest in its backward; of
what a group shares, it computes one product for all its heads.

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
from lengthwise.ops.chunks import put, spans, split, state_dtype
from lengthwise.ops.linear_attention_chunks import span_of

CHUNK = 128
"""Tokens in a chunk, the fastest measured for heads of 64."""

CHANNEL_CHUNK = 64
"""The same with a decay per channel."""

Keys = Float[Tensor, "batch length groups key_dim"]
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
    q, k = for_heads(q, v), for_heads(k, v)
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
    if v.shape[2] % q.shape[2]:
        raise InputError(f"the groups of q and k must divide the heads of v: got {q.shape[2]} and {v.shape[2]}")
    form = resolve(backend, ("numba", "torch", "reference"), q)
    if form == "reference" or q.shape[1] == 0:
        return linear_attention_reference(q, k, v, decay, initial, starts)
    if q.shape[1] == 1:
        return step(for_heads(q, v), for_heads(k, v), v, decay, initial, starts)
    if decay is not None and decay.ndim == 4:
        q, k = for_heads(q, v), for_heads(k, v)
    size = chunk or (CHANNEL_CHUNK if decay is not None and decay.ndim == 4 else CHUNK)
    size = min(size, 1 << (q.shape[1] - 1).bit_length())
    tensors = (q, k, v, decay, initial)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    o, final, _ = chunked(q, k, v, with_starts(decay, starts), initial, size, form == "numba", keep)
    return o, final


def for_heads(x: Keys, v: Values) -> Float[Tensor, "batch length heads key_dim"]:
    """Queries or keys of the groups, a copy for each head."""
    return x if x.shape[2] == v.shape[2] else x.repeat_interleave(v.shape[2] // x.shape[2], 2)


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


def in_rows(state: Matrix, groups: int) -> Float[Tensor, "rows key_dim values"]:
    """A state with the heads of a group side by side."""
    return state.unflatten(1, (groups, -1)).transpose(2, 3).flatten(3).flatten(0, 1)


def in_heads(state: Float[Tensor, "rows key_dim values"], batch: int, heads: int) -> Matrix:
    """The inverse of `in_rows`, as a copy."""
    per_group = heads * batch // max(len(state), 1)
    apart = state.unflatten(0, (batch, -1)).unflatten(-1, (per_group, -1)).transpose(2, 3)
    return apart.flatten(1, 2).clone(memory_format=torch.contiguous_format)


def grouped(x: Values, groups: int) -> Float[Tensor, "batch length groups values"]:
    """Values with the heads of a group side by side, a view."""
    return x.flatten(2).unflatten(-1, (groups, -1))


@torch.library.custom_op(
    "lengthwise::linear_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? initial, int chunk, bool kernels, bool keep)"
    " -> (Tensor, Tensor, Tensor)",
)
def chunked(q, k, v, decay, initial, chunk, kernels, keep):
    """o, the last state, and the state before every chunk and after the last (none of them unless `keep`)."""
    (batch, length, groups, key_dim), (heads, value_dim) = q.shape, v.shape[2:]
    dtype = state_dtype(q, k, v, decay, initial)
    initial = q.new_zeros(batch, heads, key_dim, value_dim, dtype=dtype) if initial is None else initial.to(dtype)
    state = in_rows(initial, groups)
    kept = state.new_empty(-(-length // chunk) + 1, *state.shape) if keep else None
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    with torch.autocast(q.device.type, enabled=False):
        for begin, end in spans(length, chunk, batch * heads):
            queries, keys, values = (split(x, begin, end, chunk, dtype) for x in (q, k, grouped(v, groups)))
            span = span_of(decay, begin, end, chunk, groups, dtype, kernels)
            written = span.written(keys, values)
            states = states_of(kept, begin // chunk, written)
            states[0] = state
            for n in range(len(written)):
                torch.add(span.carried(states[n], n), written[n], out=states[n + 1])
            state = states[-1]
            put(grouped(o, groups), begin, span.outputs(queries, keys, values, states[:-1]))
    return o, in_heads(state, batch, heads), state.new_empty(0) if kept is None else kept


@chunked.register_fake
def _(q, k, v, decay, initial, chunk, kernels, keep):
    (batch, length, groups, key_dim), (heads, value_dim) = q.shape, v.shape[2:]
    final = q.new_empty(batch, heads, key_dim, value_dim, dtype=state_dtype(q, k, v, decay, initial))
    kept = (-(-length // chunk) + 1, batch * groups, key_dim, heads // groups * value_dim) if keep else (0,)
    return torch.empty_like(v, memory_format=torch.contiguous_format), final, final.new_empty(kept)


@torch.library.custom_op(
    "lengthwise::linear_attention_backward",
    mutates_args=(),
    schema="(Tensor grad_o, Tensor grad_final, Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor o, Tensor kept,"
    " int chunk, bool kernels) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def chunked_backward(grad_o, grad_final, q, k, v, decay, o, kept, chunk, kernels):
    """Gradients of q, k, v, decay (empty where there is none) and the initial state, from the last chunk to the first.

    A log decay moves the sum of log decays of every later token.
    """
    (batch, length, groups, _), heads, dtype = q.shape, v.shape[2], kept.dtype
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    places = (grads[0], grads[1], grouped(grads[2], groups))
    grad_decay = q.new_empty(0) if decay is None else torch.empty_like(decay, memory_format=torch.contiguous_format)
    grad_state = in_rows(grad_final.to(dtype), groups)
    whole = (q, k, grouped(v, groups), grouped(o, groups), grouped(grad_o, groups))
    with torch.autocast(q.device.type, enabled=False):
        for begin, end in reversed(spans(length, chunk, batch * heads)):
            queries, keys, values, outputs, grad = (split(x, begin, end, chunk, dtype) for x in whole)
            span = span_of(decay, begin, end, chunk, groups, dtype, kernels)
            states = kept[begin // chunk : -(-end // chunk) + 1]
            read = span.read(queries, grad)
            grad_after = torch.empty_like(read)
            for n in reversed(range(len(read))):
                grad_after[n] = grad_state
                grad_state = span.carried(grad_state, n) + read[n]
            found = span.gradients((queries, keys, values, outputs), grad, states, grad_after)
            for place, part in zip(places, found[:3], strict=True):
                put(place, begin, part)
            if found.moved is not None:
                put_decay(grad_decay, begin, found.moved.flip(-2).cumsum(-2).flip(-2), batch)
    return *grads, grad_decay, in_heads(grad_state, batch, heads)


def states_of(kept: Tensor | None, chunk: int, written: Tensor) -> Tensor:
    """Where the states before the chunks of a span go, and the one after it."""
    count = len(written) + 1
    return written.new_empty(count, *written.shape[1:]) if kept is None else kept[chunk : chunk + count]


def put_decay(whole: Tensor, begin: int, moved: Tensor, batch: int) -> None:
    """Write gradients of log decays, [chunks, rows, chunk, key_dim] or [chunks, rows, chunk, decays], summed over the
    rows that share one."""
    if whole.ndim == 4:
        return put(whole, begin, moved)
    moved = moved.unflatten(1, (batch, -1)).movedim(2, 3)
    moved = moved.sum(3) if whole.shape[-1] == 1 else moved.flatten(3)
    put(whole.unsqueeze(2), begin, moved)


@chunked_backward.register_fake
def _(grad_o, grad_final, q, k, v, decay, o, kept, chunk, kernels):
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    grad_decay = q.new_empty(0) if decay is None else torch.empty_like(decay, memory_format=torch.contiguous_format)
    return *grads, grad_decay, grad_final.new_empty(grad_final.shape, dtype=kept.dtype)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what the backward reads."""
    q, k, v, decay, initial, chunk, kernels, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, decay, output[0], output[2])
    ctx.chunk, ctx.kernels, ctx.initial = chunk, kernels, None if initial is None else initial.dtype


def differentiate(ctx: Any, grad_o: Tensor | None, grad_final: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    """Gradients of all arguments of `chunked`."""
    q, k, v, decay, o, kept = ctx.saved_tensors
    grad_o = torch.zeros_like(v) if grad_o is None else grad_o
    if grad_final is None:
        grad_final = kept.new_zeros(*v.shape[:1], v.shape[2], q.shape[-1], v.shape[-1])
    given = (grad_o, grad_final, q, k, v, decay, o, kept, ctx.chunk, ctx.kernels)
    *grads, grad_decay, grad_initial = chunked_backward(*given)
    wanted = None if ctx.initial is None else grad_initial.to(ctx.initial)
    return *grads, None if decay is None else grad_decay, wanted, None, None, None


chunked.register_autograd(differentiate, setup_context=save)
