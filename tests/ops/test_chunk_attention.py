import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.ops.chunk_attention import WIDE, chunk_attention, chunk_attention_reference


def inputs(queries, keys, heads=2, kv_heads=1, head_dim=3, value_dim=5, batch=2):
    shapes = (queries, heads, head_dim), (keys, kv_heads, head_dim), (keys, kv_heads, value_dim)
    return [torch.randn(batch, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def same(given, chunk, **settings):
    fast, slow = chunk_attention(*given, chunk, **settings), chunk_attention_reference(*given, chunk, **settings)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    learned = [*given, *(x for x in settings.values() if isinstance(x, torch.Tensor) and x.requires_grad)]
    weight = torch.randn_like(fast)
    for a, b in zip(*(torch.autograd.grad((o * weight).sum(), learned) for o in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    chunk=st.integers(1, 6),
    past=st.integers(0, 9),
    queries=st.integers(1, 20),
    causal=st.booleans(),
    biased=st.booleans(),
)
def test_equals_the_definition_at_any_length_and_past(chunk, past, queries, causal, biased):
    bias = torch.randn(2, chunk, chunk, dtype=torch.float64, requires_grad=True) if biased else None
    same(inputs(queries, past + queries), chunk, causal=causal, bias=bias, scale=0.7)


def test_equals_the_definition_wherever_chunks_begin():
    """Rows of any phase, with places where there is no token."""
    slots = torch.tensor([[0, 1, 4, 5, 6, -1, 8, 12, 13, 14], [-1, -1, 0, 4, 8, 9, 10, 11, 12, 16]])
    for causal in (True, False):
        for queries in (10, 7, 1):
            bias = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
            same(inputs(queries, 10), 4, slots=slots, causal=causal, bias=bias)
            same(inputs(queries, 10), 4, slots=slots, causal=causal)


def test_where_there_is_no_token_nothing_is_seen_and_the_output_is_0():
    q, k, v = inputs(4, 4)
    o = chunk_attention(q, k, v, 4, slots=torch.tensor([[-1, 0, 1, -1], [-1, -1, -1, -1]]))
    assert o[0, [0, 3]].eq(0).all()
    assert o[1].eq(0).all()
    o.sum().backward()
    assert k.grad[1].eq(0).all()
    assert k.grad[0, [0, 3]].eq(0).all()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("slots", [None, torch.zeros(2, 0, dtype=torch.long)])
def test_no_tokens(slots):
    assert chunk_attention(*inputs(0, 0), 4, slots=slots).shape == (2, 0, 2, 5)


def test_memory_grows_with_the_length_alone():
    """No matrix of all queries and keys: at this length one would have 2^34 numbers, 64 GiB."""
    q, k, v = (torch.randn(1, 2**17, 1, 8) for _ in range(3))
    assert chunk_attention(q, k, v, 64).shape == v.shape


@pytest.mark.parametrize("causal", [True, False])
def test_wide_values_in_long_chunks(causal):
    """Longer than what is written out, whole, cut inside a chunk, and in rows of any phase."""
    chunk = WIDE + 40
    for queries, keys in ((chunk + 5, chunk + 5), (chunk, chunk + 30)):
        same(inputs(queries, keys, value_dim=7, batch=1), chunk, causal=causal, scale=1.0)
    slots = torch.cat([torch.arange(20), torch.arange(chunk, 2 * chunk)])[None]
    same(inputs(chunk + 20, chunk + 20, value_dim=7, batch=1), chunk, slots=slots, causal=causal)


def test_wide_values_need_no_matrix_of_a_chunk():
    q, k, v = (torch.randn(1, 2048, 1, width, requires_grad=True) for width in (4, 4, 8))
    written = 4 * 2048**2
    assert peak_bytes(lambda: chunk_attention(q, k, v, 2048).sum().backward()) < written / 4


def test_many_short_documents_cost_no_whole_chunks():
    """A thousand documents of three tokens, where each alone in a chunk of a million would be 64 GB of keys."""
    slots = (2**20 * torch.arange(1000)[:, None] + torch.arange(3)).flatten()[None]
    q, k, v = (torch.randn(1, 3000, 1, 8) for _ in range(3))
    o = chunk_attention(q, k, v, 2**20, slots=slots)
    alone = chunk_attention(*(x.view(1000, 3, 1, 8) for x in (q, k, v)), 3)
    torch.testing.assert_close(o.view_as(alone), alone)


def test_chunks_that_are_no_runs():
    with pytest.raises(InputError, match="one run"):
        chunk_attention(*inputs(3, 3, batch=1), 4, slots=torch.tensor([[0, 4, 1]]))
