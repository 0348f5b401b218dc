"""Collinear constrained attention against its definition, in which every pair of tokens has a key of its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.mixers.coca_attention import CoCAAttention, Collinear
from lengthwise.positions.rope import RoPE
from lengthwise.positions.stretch import stretched


def scores(collinear, q, t, places):
    turned_q, turned_k = collinear.rotate(q, t, places, places)
    return torch.einsum("bihd,bjhd->bhij", turned_q, turned_k) / q.shape[-1] ** 0.5


def constrained(q, t):
    """k_{m,n} = q_m ⊙ [t_n, t_n] for every pair: [batch, m, n, heads, head_dim]."""
    first, second = t.chunk(2, dim=-1)
    clipped = ((first + second) / 2).relu()
    return q[:, :, None] * torch.cat([clipped, clipped], -1)[:, None]


def random_pair(length=16, heads=2, width=8, dtype=torch.float64):
    return torch.randn(1, length, heads, width, dtype=dtype), torch.randn(1, length, heads, width, dtype=dtype)


def test_scores_are_those_of_a_key_for_every_pair():
    torch.manual_seed(10)
    q, t = random_pair()
    rope, places = RoPE(), torch.arange(16)
    turned_q, _ = rope.rotate(q, q, places, places)
    keys = constrained(q, t)
    naive = torch.zeros(1, 2, 16, 16, dtype=q.dtype)
    for m in range(16):
        _, turned = rope.rotate(q, keys[:, m], places, places)
        naive[:, :, m] = torch.einsum("bhd,bnhd->bhn", turned_q[:, m], turned) / 8**0.5
    assert (scores(Collinear(), q, t, places) - naive).abs().max() < 1e-12


def test_the_released_form_contracts_three_tensors():
    torch.manual_seed(10)
    q, t = random_pair()
    places = torch.arange(16)
    tied = constrained(torch.ones_like(q), t)[:, 0]
    turned_q, turned_t = RoPE().rotate(q, tied, places, places)
    three = torch.einsum("bmhc,bnhc,bmhc->bhmn", q, turned_t, turned_q) / 8**0.5
    assert (scores(Collinear(form="released"), q, t, places) - three).abs().max() < 1e-12


def test_both_forms_agree_at_the_first_token():
    torch.manual_seed(10)
    q, t = random_pair(length=1)
    at_zero = [scores(Collinear(form=form), q, t, torch.zeros(1)) for form in ("exact", "released")]
    assert torch.allclose(*at_zero)


@settings(max_examples=20, deadline=None)
@given(shift=st.integers(1, 100_000), seed=st.integers(0, 2**31))
def test_the_exact_form_depends_on_distances_alone(shift, seed):
    torch.manual_seed(seed)
    q, t = random_pair()
    places = torch.arange(16)
    # Angles of up to 1e5 are rounded to 1e-11 in float64.
    assert (scores(Collinear(), q, t, places) - scores(Collinear(), q, t, places + shift)).abs().max() < 1e-8


def test_the_released_form_depends_on_places():
    torch.manual_seed(10)
    q, t = random_pair()
    places, released = torch.arange(16), Collinear(form="released")
    assert (scores(released, q, t, places) - scores(released, q, t, places + 5)).abs().max() > 0.1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_equal_keys_score_highest_where_the_query_is(seed):
    torch.manual_seed(seed)
    q, t = random_pair(length=12)
    found = scores(Collinear(), q, t[:, :1].expand_as(t), torch.arange(12))
    own = found.diagonal(dim1=2, dim2=3)[..., None]
    assert (found <= own + 1e-12).all()


def test_a_layer_is_attention_by_these_scores():
    torch.manual_seed(10)
    layer = lw.build("coca_attention(heads=4, kv_heads=2)", dim=32).double()
    for weight in (layer.q_proj.weight, layer.k_proj.weight):
        weight.data.mul_(20)
    x = torch.randn(2, 11, 32, dtype=torch.float64)
    q, t, v = layer.project(x)
    t, v = (y.repeat_interleave(2, dim=2) for y in (t, v))
    logits = scores(layer.position, q, t, torch.arange(11))
    p = logits.masked_fill(torch.ones(11, 11).triu(1).bool(), -torch.inf).softmax(-1)
    expected = layer.o_proj(torch.einsum("bhij,bjhd->bihd", p, v).flatten(2))
    assert (layer(x)[0] - expected).abs().max() < 1e-12


def test_gradients():
    torch.manual_seed(10)
    q, t = (y.requires_grad_() for y in random_pair(length=3, heads=1, width=4))
    for form in ("exact", "released"):
        collinear = Collinear(form=form)
        assert torch.autograd.gradcheck(lambda q, t, c=collinear: scores(c, q, t, torch.arange(3)), (q, t))


def test_it_has_the_parameters_of_attention_with_rope():
    ours, plain = (lw.build(f"{name}(heads=2)", dim=16) for name in ("coca_attention", "attention"))
    assert [p.shape for p in ours.parameters()] == [p.shape for p in plain.parameters()]


def test_it_stretches_as_rope_does():
    layer = lw.build("coca_attention(heads=2)", dim=16)
    x, narrow = torch.randn(1, 12, 16), lw.build("coca_attention(heads=2, scale=3)", dim=16)
    narrow.load_state_dict(layer.state_dict())
    with stretched(layer, "interpolation", trained=4, length=12):
        assert torch.allclose(layer(x)[0], narrow(x)[0])
    with stretched(layer, "ntk", trained=4, length=12):
        assert layer.position.base == pytest.approx(10000 * 3 ** (8 / 6))
    assert layer.position.base == 10000


def test_bad_input():
    with pytest.raises(InputError, match="exact"):
        CoCAAttention(8, heads=2, form="exactly")
    with pytest.raises(InputError, match="even width"):
        CoCAAttention(6, heads=2)
    with pytest.raises(InputError, match="positive"):
        CoCAAttention(8, heads=2, scale=0)


def test_it_stays_finite_up_to_the_stated_bound():
    torch.manual_seed(10)
    layer = lw.build("coca_attention(heads=4, kv_heads=2, window=4)", dim=8)
    x = (1000 * torch.randn(20, 12, 8)).requires_grad_()
    y, _ = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all()
    assert gradient.isfinite().all()
