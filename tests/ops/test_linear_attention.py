"""The matrix-state recurrence: the chunked form against the definition, and the definition against an explicit sum."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.ops import linear_attention as module
from lengthwise.ops.linear_attention import linear_attention, linear_attention_reference

CHUNK = 8
DECAYS = ["none", "head", "channel"]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def inputs(length, decay="none", *, starts=False, initial=True, strength=1.0, seed=0, dtype=torch.float64):
    batch, heads, key_dim, value_dim = 2, 3, 4, 5
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    q, k = draw(batch, length, heads, key_dim), draw(batch, length, heads, key_dim)
    v = draw(batch, length, heads, value_dim)
    shape = {"head": (heads,), "channel": (heads, key_dim)}.get(decay)
    g = None if shape is None else -strength * draw(batch, length, *shape).abs()
    s = draw(batch, heads, key_dim, value_dim) if initial else None
    begins = torch.rand(batch, length, generator=generator) < 0.2 if starts else None
    return [q, k, v, g, s], begins


def results(tensors, starts, **settings):
    """Outputs and the gradients of a random sum of both outputs."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    o, final = linear_attention(*leaves, starts, **settings)
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=torch.float64)).sum() for t in (o, final))
    given = [t for t in leaves if t is not None]
    return [o, final, *torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True)]


def explicit(q, k, v, g, s, starts):
    """o_i = Σ_j q_i · (k_j ∘ exp(g_{j+1} + … + g_i)) v_jᵀ + q_i · (S ∘ exp(g_1 + … + g_i)), a sum for each i."""
    batch, length = q.shape[:2]
    g = torch.zeros_like(k) if g is None else g if g.ndim == 4 else g[..., None].expand_as(k)
    o = torch.zeros_like(v)
    for b in range(batch):
        for i in range(length):
            begin = max([0, *[t for t in range(i + 1) if starts is not None and starts[b, t]]])
            for j in range(begin, i + 1):
                weight = g[b, j + 1 : i + 1].sum(0).exp()
                o[b, i] += (q[b, i] * k[b, j] * weight).sum(-1, keepdim=True) * v[b, j]
            if s is not None and not (starts is not None and starts[b, : i + 1].any()):
                o[b, i] += torch.einsum("hd,hdm->hm", q[b, i] * g[b, : i + 1].sum(0).exp(), s[b])
    return o


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_reference_is_the_explicit_sum(decay, starts):
    tensors, begins = inputs(11, decay, starts=starts)
    o, _ = linear_attention_reference(*tensors, begins)
    torch.testing.assert_close(o, explicit(*tensors, begins), **EXACT)


@pytest.mark.parametrize("length", [0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_chunked_equals_reference_in_value_and_gradient(decay, starts, length):
    for initial in (False, True):
        tensors, begins = inputs(length, decay, starts=starts, initial=initial)
        fast = results(tensors, begins, chunk=CHUNK)
        slow = results(tensors, begins, backend="reference")
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("decay", DECAYS)
def test_heads_of_a_group_share_queries_and_keys(decay, groups, backend):
    (_, _, v, g, s), begins = inputs(3 * CHUNK + 3, decay, starts=True)
    v, s = torch.cat([v, v.flip(0)], 2)[:, :, :4], torch.cat([s, s.flip(0)], 1)[:, :4]
    g = None if g is None else torch.cat([g, g.flip(0)], 2)[:, :, :4]
    q, k = (torch.randn(*v.shape[:2], groups, 4, dtype=torch.float64) for _ in range(2))
    found = results([q, k, v, g, s], begins, chunk=CHUNK, backend=backend)
    copies = [x.repeat_interleave(4 // groups, 2) for x in (q, k)]
    expected = results([*copies, v, g, s], begins, backend="reference")
    for number in (2, 3):
        expected[number] = expected[number].unflatten(2, (groups, -1)).sum(3)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("length", [1, CHUNK])
def test_groups_of_heads_of_unequal_number_are_an_error(length):
    (q, k, v, _, _), _ = inputs(length)
    with pytest.raises(InputError, match="groups of q and k must divide the heads of v: got 2 and 3"):
        linear_attention(q[:, :, :2], k[:, :, :2], v)


@pytest.mark.parametrize("chunk", [1, 2, CHUNK])
def test_the_kernels_equal_plain_pytorch(chunk):
    tensors, begins = inputs(4 * CHUNK, "head", starts=True)
    fused, plain = (results(tensors, begins, chunk=chunk, backend=name) for name in ("numba", "torch"))
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_gradients_are_right_where_a_span_ends_between_chunks(monkeypatch):
    monkeypatch.setattr("lengthwise.ops.chunks.TOKENS_AT_ONCE", 2 * CHUNK * 6)
    tensors, begins = inputs(7 * CHUNK + 1, "head", starts=True)
    for a, b in zip(results(tensors, begins, chunk=CHUNK), results(tensors, begins, backend="reference"), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("decay", DECAYS)
def test_gradients_are_those_of_finite_differences(decay):
    tensors, begins = inputs(7, decay, starts=True)
    leaves = [t[:1, :, :1].clone().requires_grad_() for t in tensors[:3]]
    g = None if tensors[3] is None else tensors[3][:1, :, :1].clone().requires_grad_()
    s = tensors[4][:1, :1].clone().requires_grad_()

    def op(*given):
        given = list(given)
        g = given.pop() if decay != "none" else None
        return linear_attention(*given[:3], g, given[3], begins[:1], chunk=4)

    assert torch.autograd.gradcheck(op, [*leaves, s] + ([] if g is None else [g]))


@given(
    length=st.integers(1, 40),
    cut=st.integers(0, 40),
    chunk=st.sampled_from([1, 2, 8, 16]),
    decay=st.sampled_from(DECAYS),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_cutting_anywhere_and_going_on_gives_the_whole(length, cut, chunk, decay, seed):
    (q, k, v, g, s), begins = inputs(length, decay, starts=True, seed=seed)
    cut = min(cut, length)
    o, final = linear_attention(q, k, v, g, s, begins, chunk=chunk)
    parts, state = [], s
    for part in (slice(0, cut), slice(cut, None)):
        now = [None if t is None else t[:, part] for t in (q, k, v, g)]
        o_part, state = linear_attention(*now, state, begins[:, part], chunk=chunk)
        parts.append(o_part)
    torch.testing.assert_close(torch.cat(parts, 1), o, **EXACT)
    torch.testing.assert_close(state, final, **EXACT)


@pytest.mark.parametrize("strength", [1e-6, 50.0, 1e4, torch.inf])
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_no_decay_overflows_or_costs_digits(decay, strength):
    tensors, _ = inputs(70, decay, strength=1.0)
    weak = torch.arange(70).remainder(7) > 0
    shape = (1, 70) + (1,) * (tensors[3].ndim - 2)
    tensors[3] = torch.where(weak.view(shape), tensors[3], -strength)  # strong decays between weak ones
    exact = results(tensors, None, backend="reference")
    single = [None if t is None else t.float() for t in tensors]
    for a, b in zip(results(single, None, chunk=32), exact, strict=True):
        assert a.isfinite().all()
        # A cumulative sum in float32 would be off by 1e-3 of the chunk's 5e4; single precision allows 1e-5.
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-4)


def test_half_precision_inputs_keep_the_state_in_float32():
    tensors, _ = inputs(300, "head")
    q, k, v, g, s = tensors
    half = [t.bfloat16() for t in (q, k, v)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, state = linear_attention(*half, g.float(), s.float())
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    same, state_of_same = linear_attention(*(t.double() for t in half), g, s)
    torch.testing.assert_close(state.double(), state_of_same, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(o.double(), same, rtol=2**-8, atol=2**-8)


def test_nothing_is_kept_for_a_backward_that_cannot_come():
    q, k, v, g, s = inputs(20, "head")[0]
    assert module.chunked(q, k, v, g, s, CHUNK, True, False)[2].numel() == 0


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("groups", [1, 3])
def test_the_op_is_what_it_tells_the_compiler(decay, keep, groups):
    tensors, _ = inputs(20, decay, dtype=torch.float32)
    if decay != "channel":
        tensors[:2] = [x[:, :, :groups] for x in tensors[:2]]
    given = [None if t is None else t.requires_grad_(keep) for t in tensors]
    assert set(torch.library.opcheck(module.chunked, (*given, CHUNK, True, keep)).values()) == {"SUCCESS"}


def test_a_chunk_that_is_no_power_of_two_is_an_error():
    (q, k, v, g, s), _ = inputs(5)
    with pytest.raises(InputError, match="power of two, got 12"):
        linear_attention(q, k, v, g, s, chunk=12)
