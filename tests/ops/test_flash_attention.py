from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.pattern_strategies import combined
from torch.nn.functional import scaled_dot_product_attention

from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.ops import fused
from lengthwise.ops.bias import Difference, OfDistance, Product, Relative
from lengthwise.ops.flash_attention import backward, flash_attention, forward, merge
from lengthwise.ops.patterns import causal, first, full, window
from lengthwise.ops.visibility import aligned

PATTERNS = [causal(), full(), window(3), window(2, 3), window(None, 2), causal() & (window(3) | first(2)), first(2)]
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 5]])


def inputs(queries=7, keys=11, heads=4, kv_heads=2, dim=3, value_dim=2, dtype=torch.float64, batch=2):
    torch.manual_seed(0)
    shapes = [(queries, heads, dim), (keys, kv_heads, dim), (keys, kv_heads, value_dim)]
    return [torch.randn(batch, *shape, dtype=dtype, requires_grad=True) for shape in shapes]


def closed_form(q, k, v, pattern, bias=None, scale=None, documents=None):
    """O and LSE from the matrix of logits, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    logits = torch.einsum("bihd,bjhd->bhij", q, k) * (q.shape[3] ** -0.5 if scale is None else scale)
    logits = logits if bias is None else logits + bias
    numbers = (None, None) if documents is None else (documents[:, -q.shape[1] :], documents)
    seen = aligned(pattern, q.shape[1], k.shape[1], *numbers).mask()[:, None]
    logits = logits.masked_fill(~seen, -torch.inf)
    p = logits.softmax(-1).masked_fill(~seen, 0)
    return torch.einsum("bhij,bjhd->bihd", p, v), logits.logsumexp(-1).transpose(1, 2)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_equals_the_closed_form_whatever_the_tiles(pattern, documents):
    q, k, v = inputs()
    packed = {} if documents is None else {"query_documents": documents[:, 4:], "key_documents": documents}
    expected = closed_form(q, k, v, pattern, documents=documents)
    for tile in ((4, 4), (1, 3), (5, 2), (64, 64)):
        for got, wanted in zip(flash_attention(q, k, v, pattern=pattern, tile=tile, **packed), expected, strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_gradients_equal_finite_differences(pattern):
    """Of O and LSE, along random directions; every query sees some key here, so that no LSE is −∞."""
    bias = torch.randn(1, 4, 7, 11, dtype=torch.float64, requires_grad=True)

    def function(q, k, v, bias):
        return flash_attention(q, k, v, pattern=pattern, bias=bias, tile=(4, 4))

    assert torch.autograd.gradcheck(function, (*inputs(), bias), fast_mode=True)


def test_every_gradient_equals_finite_differences():
    arguments = inputs(heads=2, kv_heads=1, dim=2, batch=1)
    assert torch.autograd.gradcheck(lambda q, k, v: flash_attention(q, k, v, tile=(4, 4)), arguments)


@pytest.mark.parametrize("shape", [(2, 4, 7, 11), (1, 1, 7, 11), (2, 1, 1, 11), (1, 4, 7, 1)])
def test_gradients_of_a_bias_that_is_shared(shape):
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    arguments = (*inputs(), bias)

    def function(q, k, v, bias):
        return flash_attention(q, k, v, bias=bias, tile=(4, 4))

    assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
    torch.testing.assert_close(
        flash_attention(*arguments[:3], bias=bias, tile=(4, 4)), closed_form(*arguments[:3], causal(), bias)
    )


def biases():
    """One of every kind, with queries that are the last of the keys, and what each is made of."""
    torch.manual_seed(1)
    f, g, table = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 4, 7), (1, 4, 11), (4, 17)))
    u, w = torch.randn(2, 4, 7, 3, dtype=torch.float64), torch.randn(1, 4, 11, 3, dtype=torch.float64)
    weight = torch.randn(4, dtype=torch.float64)
    places = torch.randint(0, 30, (2, 11))

    def of(apart, weight):
        return (apart * 0.3).cos()[:, None] * weight[:, None, None]

    return {
        "difference": Difference(f, g),
        "relative": Relative(table, 7),
        "of distance": OfDistance(of, places[:, 4:], places, 4, (weight,)),
        "product": Product(u, w),
    }


@pytest.mark.parametrize("kind", biases())
def test_every_kind_of_bias_equals_itself_written_out(kind):
    bias = biases()[kind]
    bias = bias.scaled(0.7).over([x.requires_grad_() for x in bias.scaled(0.7).inputs])

    def function(q, k, v, *made_of):
        return flash_attention(q, k, v, bias=bias.over(made_of), tile=(4, 4))

    arguments = (*inputs(), *bias.inputs)
    torch.testing.assert_close(function(*arguments), closed_form(*arguments[:3], causal(), bias.written()))
    assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
    torch.testing.assert_close(bias.of_heads(slice(1, 3)).written(), bias.written()[:, 1:3])


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(sorted(biases())),
    tile=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kv_heads=st.sampled_from([1, 2, 4]),
    pattern=st.sampled_from(PATTERNS[:-1]),
    packed=st.booleans(),
)
def test_every_kind_of_bias_with_any_tiles(kind, tile, kv_heads, pattern, packed):
    """Values and gradients, of patterns in which every query sees itself."""
    held_to_the_closed_form(kind, tile, kv_heads, pattern, packed)


@settings(deadline=None, max_examples=25)
@given(pattern=combined, batch=st.integers(1, 2), learned=st.booleans(), packed=st.booleans())
def test_tiles_that_hide_any_part_of_their_keys(pattern, batch, learned, packed):
    """Tiles of several blocks, each of which computes the keys that it sees alone."""
    pattern = pattern | window(1)  # the softmax of nothing has no gradient in the closed form
    q, k, v = inputs(150, 170, dim=2, batch=batch)
    documents = torch.randint(0, 2, (batch, 170)).cumsum(1) // 30 if packed else None
    numbers = {"query_documents": documents[:, 20:], "key_documents": documents} if packed else {}
    bias = torch.randn(1, 4, 150, 170, dtype=torch.float64, requires_grad=learned)
    got, _ = flash_attention(q, k, v, pattern=pattern, bias=bias, tile=(150, 100), **numbers)
    wanted, _ = closed_form(q, k, v, pattern, bias, documents=documents)
    torch.testing.assert_close(got, wanted)
    leaves = (q, k, v, bias) if learned else (q, k, v)
    got, wanted = (torch.autograd.grad(o.square().sum(), leaves) for o in (got, wanted))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("packed", [False, True], ids=["one", "packed"])
@pytest.mark.parametrize("kind", biases())
def test_the_form_for_other_devices(monkeypatch, kind, packed):
    """Run on the processor, as if PyTorch's library didn't show its matrix product."""
    calls = []

    def seen(form):
        def call(*arguments):
            calls.append(form)
            return form(*arguments)

        return call

    monkeypatch.setattr(fused, "gemm", lambda dtype: None)
    monkeypatch.setattr("lengthwise.ops.flash_attention.forward", seen(forward))
    monkeypatch.setattr("lengthwise.ops.flash_attention.backward", seen(backward))
    held_to_the_closed_form(kind, (4, 3), 2, causal(), packed)
    assert calls == [forward, backward]


def held_to_the_closed_form(kind, tile, kv_heads, pattern, packed):
    bias = biases()[kind]
    bias = bias.over([x.requires_grad_() for x in bias.inputs])
    leaves = (*inputs(kv_heads=kv_heads), *bias.inputs)
    numbers = {"query_documents": DOCUMENTS[:, 4:], "key_documents": DOCUMENTS} if packed else {}
    got = flash_attention(*leaves[:3], pattern=pattern, bias=bias, tile=tile, **numbers)
    documents = DOCUMENTS if packed else None
    wanted = closed_form(*leaves[:3], pattern, bias.written(), documents=documents)
    torch.testing.assert_close(got, wanted)
    got, wanted = (torch.autograd.grad(o.square().sum() + lse.sum(), leaves) for o, lse in (got, wanted))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_equals_the_kernel_of_the_framework(pattern):
    q, k, v = inputs(70, 90, dim=16, value_dim=16, dtype=torch.float32)
    mask = aligned(pattern, 70, 90).mask()[:, None]
    expected = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask, enable_gqa=True)
    got, _ = flash_attention(q, k, v, pattern=pattern, tile=(32, 16))
    torch.testing.assert_close(got, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cut", [0, 1, 5, 11])
def test_parts_of_the_keys_merge_to_the_whole(cut):
    q, k, v = inputs(dtype=torch.float32)
    whole = flash_attention(q, k, v, pattern=full())
    parts = [flash_attention(q, k[:, s], v[:, s], pattern=full()) for s in (slice(0, cut), slice(cut, None))]
    for got, expected in zip(merge(*parts[0], *parts[1]), whole, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_gradients_go_through_a_merge():
    q, k, v = inputs()

    def function(q, k, v):
        parts = [flash_attention(q, k[:, s], v[:, s], pattern=full(), tile=(4, 4)) for s in (slice(0, 5), slice(5, 11))]
        return merge(*parts[0], *parts[1])

    assert torch.autograd.gradcheck(function, (q, k, v), fast_mode=True)


def test_a_query_that_sees_nothing():
    q, k, v = inputs(11, 7)
    o, lse = flash_attention(q, k, v, tile=(4, 4))
    assert o[:, :4].abs().max() == 0
    assert lse[:, :4].eq(-torch.inf).all()
    assert lse[:, 4:].isfinite().all()
    grads = torch.autograd.grad(o.sum() + lse[:, 4:].sum(), (q, k, v))
    assert all(g.isfinite().all() for g in grads)
    assert grads[0][:, :4].abs().max() == 0
    nothing = torch.full_like(lse, -torch.inf)
    for got, expected in zip(merge(o, lse, torch.zeros_like(o), nothing), (o, lse), strict=True):
        torch.testing.assert_close(got, expected)


def test_large_logits_do_not_overflow():
    q, k, v = inputs(64, 64, dtype=torch.float32)
    o, lse = flash_attention(q * 50, k * 50, v, tile=(16, 16))
    expected = closed_form(q * 50, k * 50, v, causal())
    torch.testing.assert_close(o.double(), expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lse.double(), expected[1], atol=1e-2, rtol=1e-5)


def test_half_precision_sums_in_float32():
    q, k, v = (x.detach() for x in inputs(64, 64, dim=16, value_dim=16, dtype=torch.bfloat16))
    o, lse = flash_attention(q, k, v, tile=(16, 16))
    expected = closed_form(q, k, v, causal())
    assert (o.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(lse.double(), expected[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(o.double(), expected[0], atol=1e-2, rtol=1e-2)


def test_memory_is_linear_in_the_length():
    def step(length):
        q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, length, 1, 8))
        flash_attention(q, k, v, tile=(64, 64))[0].sum().backward()

    short, long = (peak_bytes(lambda length=length: step(length)) for length in (256, 1024))
    assert long <= 4.2 * short
    assert long < 1024 * 1024


def test_length_zero():
    for queries, keys in ((0, 0), (0, 3), (2, 0)):
        q, k, v = inputs(queries, keys)
        o, lse = flash_attention(q, k, v, pattern=full())
        assert o.shape == (2, queries, 4, 2)
        assert lse.eq(-torch.inf).all()
        o.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": (0, 4)}, "tile must be at least 1 by 1, got 0 by 4"),
        ({"bias": torch.zeros(1, 4, 7, 9)}, "bias must have 11 keys or 1"),
    ],
)
def test_what_makes_no_sense_is_told(arguments, message):
    with pytest.raises(InputError, match=message):
        flash_attention(*inputs(), **arguments)


@pytest.mark.parametrize("kind", ["relative", "difference"])
def test_threads_share_the_tiles(kind):
    """And hold far less than a matrix of [heads, queries, keys], forward and backward."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1500, 4, 16, requires_grad=True) for _ in range(3))
    table, f = torch.randn(4, 2999, requires_grad=True), torch.randn(1, 4, 1500, requires_grad=True)
    bias = Relative(table, 1500) if kind == "relative" else Difference(f, f)
    leaves = (q, k, v, *set(bias.inputs))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            o, lse = flash_attention(q, k, v, bias=bias)
            results.append((o, lse, *torch.autograd.grad(o.square().sum(), leaves)))
        torch.set_num_threads(1)  # what other threads allocate isn't seen
        held = peak_bytes(lambda: torch.autograd.grad(flash_attention(q, k, v, bias=bias)[0].sum(), leaves))
    finally:
        torch.set_num_threads(before)
    for one, two, again in zip(*results, strict=True):
        torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-4)  # sums of 1500 terms in another order
        torch.testing.assert_close(two, again, atol=0, rtol=0)
    assert held < 4 * 4 * 1500 * 1500 / 2
