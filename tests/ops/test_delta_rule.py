"""The delta rule: the chunked form against the definition, the definition against products of matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from lengthwise.errors import InputError
from lengthwise.ops import delta_rule as module
from lengthwise.ops.delta_rule import delta_rule, delta_rule_reference

CHUNK = 8
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def inputs(length, *, starts=False, initial=True, seed=0, largest=1.0):
    batch, heads, key_dim, value_dim = 2, 3, 4, 5
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = draw(batch, length, heads, key_dim), normalize(draw(batch, length, heads, key_dim), dim=-1)
    v, beta = draw(batch, length, heads, value_dim), largest * draw(batch, length, heads).sigmoid()
    begins = torch.rand(batch, length, generator=generator) < 0.2 if starts else None
    return [q, k, v, beta, draw(batch, heads, key_dim, value_dim) if initial else None], begins


def results(tensors, starts, **settings):
    """Outputs and the gradients of a random sum of both outputs."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    o, final = delta_rule(*leaves, starts, **settings)
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=torch.float64)).sum() for t in (o, final))
    given = [t for t in leaves if t is not None]
    return [o, final, *torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True)]


def test_reference_is_a_product_of_householder_like_factors():
    (q, k, v, beta, s), starts = inputs(9, starts=True)
    o, final = delta_rule_reference(q, k, v, beta, s, starts)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            state = s[b, h]
            for t in range(q.shape[1]):
                state = torch.zeros_like(state) if starts[b, t] else state
                key, rate = k[b, t, h], beta[b, t, h]
                factor = torch.eye(len(key), dtype=key.dtype) - rate * torch.outer(key, key)
                state = factor @ state + rate * torch.outer(key, v[b, t, h])
                torch.testing.assert_close(o[b, t, h], q[b, t, h] @ state, **EXACT)
            torch.testing.assert_close(final[b, h], state, **EXACT)


@pytest.mark.parametrize("length", [0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
@pytest.mark.parametrize("starts", [False, True])
def test_chunked_equals_reference_in_value_and_gradient(starts, length):
    for initial in (False, True):
        tensors, begins = inputs(length, starts=starts, initial=initial, largest=2.0)
        fast = results(tensors, begins, chunk=CHUNK)
        slow = results(tensors, begins, backend="reference")
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a, b, **EXACT)


def test_gradients_are_right_where_a_span_ends_between_chunks(monkeypatch):
    monkeypatch.setattr("lengthwise.ops.chunks.TOKENS_AT_ONCE", 2 * CHUNK * 6)
    tensors, begins = inputs(7 * CHUNK + 1, starts=True)
    for a, b in zip(results(tensors, begins, chunk=CHUNK), results(tensors, begins, backend="reference"), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_gradients_are_those_of_finite_differences():
    (q, k, v, beta, s), starts = inputs(7, starts=True)
    leaves = [t[:1, :, :1].clone().requires_grad_() for t in (q, k, v, beta)] + [s[:1, :1].clone().requires_grad_()]
    assert torch.autograd.gradcheck(lambda *given: delta_rule(*given, starts[:1], chunk=4), leaves)


@given(length=st.integers(1, 40), cut=st.integers(0, 40), chunk=st.integers(1, 17), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_cutting_anywhere_and_going_on_gives_the_whole(length, cut, chunk, seed):
    (q, k, v, beta, s), starts = inputs(length, starts=True, seed=seed)
    cut = min(cut, length)
    o, final = delta_rule(q, k, v, beta, s, starts, chunk=chunk)
    parts, state = [], s
    for part in (slice(0, cut), slice(cut, None)):
        now = [t[:, part] for t in (q, k, v, beta)]
        o_part, state = delta_rule(*now, state, starts[:, part], chunk=chunk)
        parts.append(o_part)
    torch.testing.assert_close(torch.cat(parts, 1), o, **EXACT)
    torch.testing.assert_close(state, final, **EXACT)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_with_orthonormal_keys_and_full_rates_the_latest_value_comes_back(backend):
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    written = [0, 1, 2, 3, 1, 1, 3, 0, 1]
    keys, values = basis[written][None, :, None], torch.randn(1, len(written), 1, 4, dtype=torch.float64)
    ones = torch.ones(1, len(written), 1, dtype=torch.float64)
    _, final = delta_rule(keys, keys, values, ones, chunk=4, backend=backend)
    for key in range(4):
        latest = max(t for t, which in enumerate(written) if which == key)
        torch.testing.assert_close(basis[key] @ final[0, 0], values[0, latest, 0], **EXACT)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_writing_the_same_again_changes_nothing(backend):
    (_, k, v, beta, s), _ = inputs(1)
    twice = [t.repeat_interleave(2, 1) for t in (k, k, v, torch.ones_like(beta))]
    _, once = delta_rule(*(t[:, :1] for t in twice), s, backend=backend)
    _, again = delta_rule(*twice, s, backend=backend)
    torch.testing.assert_close(again, once, **EXACT)


def test_half_precision_inputs_keep_the_state_in_float32():
    (q, k, v, beta, s), _ = inputs(150)
    half = [t.bfloat16() for t in (q, k, v, beta)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, state = delta_rule(*half, s.float())
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    same, state_of_same = delta_rule(*(t.double() for t in half), s)
    torch.testing.assert_close(state.double(), state_of_same, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(o.double(), same, rtol=2**-8, atol=2**-8)


def test_keys_that_repeat_at_full_rate_stay_exact_in_float32():
    (q, k, v, beta, s), _ = inputs(256)
    k = k[:, :1].expand_as(k)
    given = (q, k, v, torch.ones_like(beta), s)
    o, final = delta_rule(*(t.float() for t in given))
    expected, expected_final = delta_rule_reference(*given)
    torch.testing.assert_close(o.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(final.double(), expected_final, rtol=1e-4, atol=1e-4)


def test_nothing_is_kept_for_a_backward_that_cannot_come():
    (q, k, v, beta, s), _ = inputs(20)
    assert all(t.numel() == 0 for t in module.chunked(q, k, v, beta, s, None, CHUNK, False)[2:])


@pytest.mark.parametrize("keep", [False, True])
def test_the_op_is_what_it_tells_the_compiler(keep):
    tensors, starts = inputs(20, starts=True)
    given = [t.requires_grad_(keep) for t in tensors]
    assert set(torch.library.opcheck(module.chunked, (*given, starts, CHUNK, keep)).values()) == {"SUCCESS"}


def test_a_chunk_of_no_token_is_an_error():
    (q, k, v, beta, s), _ = inputs(5)
    with pytest.raises(InputError, match="chunk must be at least 1, got 0"):
        delta_rule(q, k, v, beta, s, chunk=0)
