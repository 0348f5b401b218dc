"""The delta rule: a matrix-state recurrence that corrects what the memory returns for a key before it writes.

    e_t = v_t − S_{t-1}ᵀ k_t        S_t = S_{t-1} + β_t k_t e_tᵀ = (I − β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ
    o_t = S_tᵀ q_t

    q, k: [batch, length, heads, key_dim]     v, o: [batch, length, heads, value_dim]     β: [batch, length, heads]
    S:    [batch, heads, key_dim, value_dim]

Neither scale nor norm is inside; |k_t|² β_t must stay below 2, or the state grows without bound. The fast form takes
chunks of C tokens with rows Q, K, V and the state S before them:

    T = (I + diag(β) tril(K Kᵀ, −1))⁻¹ diag(β)      U = T (V − K S)      the corrected values
    O = Q S + tril(Q Kᵀ) U                          S ← S + Kᵀ U

The inverses of all chunks are found together, so that only three small matrix products a chunk are left in the loop.
State before each chunk, inverse and U are kept for the backward. A token that starts a document drops S and hides the
keys before it.

Yang et al. 2024, arXiv 2406.06484; the rule, Schlag et al. 2021, arXiv 2102.11174.
"""

# ruff: noqa: ARG001 - what stands for an op in tracing takes all that the op takes

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.ops.backend import resolve
from lengthwise.ops.chunk_decay import HeadDecay, transposed, weighted
from lengthwise.ops.chunks import put, spans, split, state_dtype

CHUNK = 128
"""Tokens in a chunk, the fastest measured for heads of 64."""

Keys = Float[Tensor, "batch length heads key_dim"]
Values = Float[Tensor, "batch length heads value_dim"]
Rates = Float[Tensor, "batch length heads"]
Matrix = Float[Tensor, "batch heads key_dim value_dim"]


def delta_rule_reference(
    q: Keys,
    k: Keys,
    v: Values,
    beta: Rates,
    initial: Matrix | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
) -> tuple[Values, Matrix]:
    """The definition, one step at a time. Any dtype."""
    dtype = state_dtype(q, k, v, beta, initial)
    state = v.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1], dtype=dtype) if initial is None else initial.to(dtype)
    forgets = [None] * q.shape[1] if starts is None else starts[..., None, None, None].unbind(1)
    outputs = []
    for q_t, k_t, v_t, beta_t, forget in zip(*(x.to(dtype).unbind(1) for x in (q, k, v, beta)), forgets, strict=True):
        if forget is not None:
            state = state.masked_fill(forget, 0.0)
        error = v_t - (k_t.unsqueeze(-2) @ state).squeeze(-2)
        state = state + k_t.unsqueeze(-1) * (beta_t.unsqueeze(-1) * error).unsqueeze(-2)
        outputs.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1).to(v.dtype) if outputs else v.clone(), state


def delta_rule(
    q: Keys,
    k: Keys,
    v: Values,
    beta: Rates,
    initial: Matrix | None = None,
    starts: Bool[Tensor, "batch length"] | None = None,
    *,
    chunk: int = CHUNK,
    backend: str = "auto",
) -> tuple[Values, Matrix]:
    """o_t for every t in the dtype of v, and the last S in float32 (float64 if an input is).

    initial: S before the first token; zero where it is None.
    starts: True where a token sees nothing before it.
    chunk: tokens in a chunk.
    """
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    if resolve(backend, ("torch", "reference"), q) == "reference" or q.shape[1] == 0:
        return delta_rule_reference(q, k, v, beta, initial, starts)
    if q.shape[1] == 1:
        return step(q, k, v, beta, initial, starts)
    chunk = min(chunk, q.shape[1])
    tensors = (q, k, v, beta, initial)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    o, final, *_ = chunked(q, k, v, beta, initial, starts, chunk, keep)
    return o, final


def step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, initial: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token: the recurrence itself, in as few operations as there are."""
    dtype = state_dtype(q, k, v, beta, initial)
    with torch.autocast(q.device.type, enabled=False):
        query, key, value = (x.transpose(1, 2).to(dtype) for x in (q, k, v))
        rate = beta.transpose(1, 2).unsqueeze(-1).to(dtype)
        if initial is None:
            state = key.mT * (rate * value)
        else:
            state = initial.to(dtype)
            if starts is not None:
                state = state.masked_fill(starts[..., None, None], 0.0)
            state = torch.addcmul(state, key.mT, rate * (value - key @ state))
        return (query @ state).transpose(1, 2).to(v.dtype), state


def masks(starts: Tensor | None, begin: int, end: int, chunk: int, rows: int, dtype: torch.dtype) -> HeadDecay:
    """What reaches what inside the chunks from `begin` to `end`: weights of 0 and 1."""
    if starts is None:
        return HeadDecay()
    decay = torch.zeros_like(starts, dtype=torch.float64).masked_fill_(starts, -torch.inf)
    return HeadDecay.of(split(decay[..., None, None], begin, end, chunk, torch.float64), rows, dtype)


def inverses(rated: Tensor, keys: Tensor, w: HeadDecay) -> Tensor:
    """M⁻¹ = (I + tril(diag(β) K Kᵀ, −1))⁻¹ of every chunk; forward substitution reads the lower half alone."""
    coupling = weighted(rated @ keys, w.within)
    identity = torch.eye(coupling.shape[-1], dtype=keys.dtype, device=keys.device).expand_as(coupling)
    return torch.linalg.solve_triangular(coupling, identity, upper=False, unitriangular=True)


@torch.library.custom_op(
    "lengthwise::delta_rule",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? initial, Tensor? starts, int chunk, bool keep)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def chunked(q, k, v, beta, initial, starts, chunk, keep):
    """o and the last state; if `keep`, the state before every chunk and after the last, the inverses, and U."""
    (batch, length, heads, key_dim), value_dim = q.shape, v.shape[-1]
    dtype, rows, chunks = state_dtype(q, k, v, beta, initial), batch * heads, -(-length // chunk)
    state = q.new_zeros(rows, key_dim, value_dim, dtype=dtype) if initial is None else initial.flatten(0, 1).to(dtype)
    shapes = ((chunks + 1, rows, key_dim, value_dim), (chunks, rows, chunk, chunk), (chunks, rows, chunk, value_dim))
    kept = [state.new_empty(shape if keep else 0) for shape in shapes]
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    with torch.autocast(q.device.type, enabled=False):
        for begin, end in spans(length, chunk, rows):
            queries, keys, values, rates = (split(x, begin, end, chunk, dtype) for x in (q, k, v, beta.unsqueeze(-1)))
            w, across = masks(starts, begin, end, chunk, rows, dtype), transposed(keys)
            inverse = inverses(keys * rates, across, w)
            states, u = solve(inverse, values * rates, weighted(keys * rates, w.enter), across, w, state)
            out = w.mask(queries @ across) @ u
            out += weighted(queries, w.enter) @ states[:-1]
            put(o, begin, out)
            state = states[-1]
            if keep:
                for whole, part in zip(kept, (states, inverse, u), strict=True):
                    whole[begin // chunk : begin // chunk + len(part)] = part
    return o, state.reshape(batch, heads, key_dim, value_dim).clone(), *kept


def solve(
    inverse: Tensor, values: Tensor, reading: Tensor, across: Tensor, w: HeadDecay, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The states before the chunks of a span and after it, and U = M⁻¹ diag(β) (V − K S), with β in V and K already."""
    states, u = values.new_empty(len(values) + 1, *state.shape), torch.empty_like(values)
    states[0] = state
    writing = across if w.leave is None else across * w.leave.mT
    for n in range(len(values)):
        error = torch.baddbmm(values[n], reading[n], states[n], alpha=-1)
        torch.bmm(inverse[n], error, out=u[n])
        held = weighted(states[n], None if w.carry is None else w.carry[n])
        torch.baddbmm(held, writing[n], u[n], out=states[n + 1])
    return states, u


@chunked.register_fake
def _(q, k, v, beta, initial, starts, chunk, keep):
    (batch, _, heads, key_dim), chunks = q.shape, -(-q.shape[1] // chunk)
    final = q.new_empty(batch, heads, key_dim, v.shape[-1], dtype=state_dtype(q, k, v, beta, initial))
    sizes = ((chunks + 1, key_dim, v.shape[-1]), (chunks, chunk, chunk), (chunks, chunk, v.shape[-1]))
    kept = (final.new_empty((n, batch * heads, *size) if keep else (0,)) for n, *size in sizes)
    return torch.empty_like(v, memory_format=torch.contiguous_format), final, *kept


@torch.library.custom_op(
    "lengthwise::delta_rule_backward",
    mutates_args=(),
    schema="(Tensor grad_o, Tensor grad_final, Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? starts,"
    " Tensor states, Tensor inverse, Tensor u, int chunk) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def chunked_backward(grad_o, grad_final, q, k, v, beta, starts, states, inverse, u, chunk):
    """Gradients of q, k, v, β and of the initial state, from the last chunk to the first."""
    (batch, length, heads, _), dtype = q.shape, states.dtype
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, beta)]
    grad_state = grad_final.flatten(0, 1).to(dtype)
    with torch.autocast(q.device.type, enabled=False):
        for begin, end in reversed(spans(length, chunk, batch * heads)):
            here = slice(begin // chunk, -(-end // chunk))
            given = [split(x, begin, end, chunk, dtype) for x in (q, k, v, beta.unsqueeze(-1), grad_o)]
            w = masks(starts, begin, end, chunk, batch * heads, dtype)
            *parts, grad_state = span_backward((*given, states[here], inverse[here], u[here]), w, grad_state)
            for whole, part in zip(grads, parts, strict=True):
                put(whole if whole.ndim == 4 else whole.unsqueeze(-1), begin, part)
    return *grads, grad_state.reshape(batch, heads, *grad_state.shape[1:]).clone()


def span_backward(given: tuple[Tensor, ...], w: HeadDecay, grad_state: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the q, k, v, β of a span, and of the state before it.

    With P = tril(Q Kᵀ), M = I + tril(diag(β) K Kᵀ, −1), E = V − K S, and a bar for the gradient of what it stands over:

        Ū = Pᵀ Ō + K S̄′      Y = M⁻ᵀ Ū      Ē = diag(β) Y      M̄ = −tril(Y Uᵀ, −1)      S̄ = S̄′ + Qᵀ Ō − Kᵀ Ē
    """
    q, k, v, beta, grad, states, inverse, u = given
    reading, writing = weighted(k * beta, w.enter), weighted(k, w.leave)
    grad_u = w.scores(q, k).mT @ grad
    read = weighted(q, w.enter).mT @ grad
    y, grad_after = torch.empty_like(u), torch.empty_like(read)
    for n in reversed(range(len(u))):
        grad_after[n] = grad_state
        torch.bmm(inverse[n].mT, torch.baddbmm(grad_u[n], writing[n], grad_state), out=y[n])
        grad_state = weighted(grad_state, None if w.carry is None else w.carry[n]) + read[n]
        grad_state.baddbmm_(reading[n].mT, y[n], alpha=-1)
    u_across, states_across = transposed(u), transposed(states)
    grad_q, grad_k = w.scores_backward(grad @ u_across, q, k)
    grad_q += weighted(grad @ states_across, w.enter)
    grad_k += weighted(u @ transposed(grad_after), w.leave)
    grad_v = y * beta
    grad_k -= weighted(grad_v @ states_across, w.enter)
    grad_coupling = w.mask(y @ u_across).tril_(-1)
    pulled = grad_coupling @ k
    grad_k -= pulled * beta
    grad_k -= grad_coupling.mT @ (k * beta)
    error = v - weighted(k, w.enter) @ states
    grad_beta = (y * error).sum(-1, keepdim=True) - (pulled * k).sum(-1, keepdim=True)
    return grad_q, grad_k, grad_v, grad_beta, grad_state


@chunked_backward.register_fake
def _(grad_o, grad_final, q, k, v, beta, starts, states, inverse, u, chunk):
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, beta)]
    return *grads, grad_final.new_empty(grad_final.shape, dtype=states.dtype)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what the backward reads."""
    q, k, v, beta, initial, starts, chunk, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, beta, starts, *output[2:])
    ctx.chunk, ctx.initial = chunk, None if initial is None else initial.dtype


def differentiate(ctx: Any, grad_o: Tensor | None, grad_final: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """Gradients of all arguments of `chunked`."""
    q, k, v, beta, starts, states, inverse, u = ctx.saved_tensors
    grad_o = torch.zeros_like(v) if grad_o is None else grad_o
    if grad_final is None:
        grad_final = states.new_zeros(q.shape[0], q.shape[2], *states.shape[2:])
    *grads, grad_initial = chunked_backward(grad_o, grad_final, q, k, v, beta, starts, states, inverse, u, ctx.chunk)
    return *grads, None if ctx.initial is None else grad_initial.to(ctx.initial), None, None, None


chunked.register_autograd(differentiate, setup_context=save)
