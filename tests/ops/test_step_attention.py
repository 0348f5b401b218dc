import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.ops import fused
from lengthwise.ops import step_attention as module
from lengthwise.ops.attention import attention, attention_reference
from lengthwise.ops.bias import Difference, Product, Relative, Written
from lengthwise.ops.dense_attention import dense
from lengthwise.ops.step_attention import step_attention

# Sums of some thousand terms in another order, of numbers near 1.
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-12}


def drawn(batch, keys, kv_heads, groups, widths, dtype=torch.float64, more=0):
    """q, k and v as a cache gives them: a stretch of a buffer with room, its heads with `more` channels behind."""
    torch.manual_seed(keys * 100 + kv_heads * 10 + batch)
    head_dim, value_dim = widths
    k, v = (torch.randn(batch, keys + 5, kv_heads, width + more, dtype=dtype) for width in widths)
    q = torch.randn(batch, 1, kv_heads * groups, head_dim, dtype=dtype)
    return q, k[:, 2 : keys + 2, :, :head_dim], v[:, 3 : keys + 3, :, :value_dim]


def biases(form, q, k):
    """A bias of each form that there is."""
    (batch, _, heads, _), keys, dtype = q.shape, k.shape[1], q.dtype
    if form == "written":
        return Written(torch.randn(batch, heads, 1, keys, dtype=dtype))
    if form == "one row for all":
        return Written(torch.randn(1, 1, 1, keys, dtype=dtype))
    if form == "one number":
        return Written(torch.randn(batch, heads, 1, 1, dtype=dtype))
    if form == "relative":
        return Relative(torch.randn(heads, keys + 3, dtype=dtype)[:, 2:-1], 1)
    if form == "difference":
        return Difference(torch.randn(batch, heads, 1, dtype=dtype), torch.randn(batch, keys, heads, dtype=dtype).mT)
    if form == "difference in float64":
        return Difference(torch.randn(1, heads, 1).double() + 9, torch.randn(1, heads, keys).double() + 9)
    if form == "product":
        return Product(torch.randn(1, heads, 1, 3, dtype=dtype), torch.randn(batch, heads, keys, 3, dtype=dtype))
    return None


FORMS = (
    "none",
    "written",
    "one row for all",
    "one number",
    "relative",
    "difference",
    "difference in float64",
    "product",
)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(1, 200),
    st.integers(1, 3),
    st.integers(1, 3),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from(list(TOLERANCES)),
    st.sampled_from(FORMS),
    st.integers(0, 2),
    st.sampled_from([None, 0.3]),
)
def test_it_is_attention(batch, keys, kv_heads, groups, widths, dtype, form, more, scale):
    q, k, v = drawn(batch, keys, kv_heads, groups, widths, dtype, more)
    bias = biases(form, q, k)
    assert module._fits(q, k, v, bias)
    given = {"bias": bias, "scale": scale}
    exact = attention_reference(q.double(), k.double(), v.double(), **given)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(step_attention(q, k, v, **given).double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("form", FORMS)
def test_threads_share_the_keys(threads, batch, form):
    q, k, v = drawn(batch, 3001, 2, 2, (16, 24))
    bias = biases(form, q, k)
    assert batch * 3001 * 4 * 40 >= fused.SMALL
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = step_attention(q, k, v, bias=bias)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, attention_reference(q, k, v, bias=bias), rtol=1e-11, atol=1e-11)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4000), st.floats(0, 1), st.sampled_from(list(TOLERANCES)))
def test_keys_that_a_bias_hides_count_for_nothing(keys, hidden, dtype):
    q, k, v = drawn(2, keys, 1, 2, (8, 8), dtype)
    b = torch.randn(2, 2, 1, keys, dtype=dtype).masked_fill(torch.rand(2, 2, 1, keys) < hidden, -torch.inf)
    b[0, 1] = -torch.inf
    v = v.clone()
    v[1, (b[1] == -torch.inf).all(0)[0]] = 1e30
    found = step_attention(q, k, v, bias=Written(b))
    assert (found[0, 0, 1] == 0).all()
    seen = (b > -torch.inf).any(3).squeeze(2)
    exact = attention_reference(q.double(), k.double(), v.double(), bias=b.double())[:, 0]
    torch.testing.assert_close(found[:, 0][seen].double(), exact[seen], rtol=2e-5, atol=2e-5)
    assert (found[:, 0][~seen] == 0).all()


@pytest.mark.parametrize("level", [-1e30, -1000.0, 1000.0])
def test_logits_may_be_far_from_zero(level):
    q, k, v = drawn(1, 3000, 2, 1, (16, 16), torch.float32)
    near = Written(torch.full((1, 1, 1, 1), level))
    exact = dense(q, k, v) if abs(level) < 1e4 else v.mean(1, keepdim=True)  # beside 1e30 the logits vanish
    torch.testing.assert_close(step_attention(q, k, v, bias=near), exact, rtol=1e-3, atol=1e-3)


def test_all_else_is_left_to_pytorch():
    q, k, v = drawn(2, 30, 2, 2, (8, 8), torch.float32)
    torch.testing.assert_close(step_attention(q, k, v, backend="torch"), dense(q, k, v))
    wanting = q.clone().requires_grad_()
    step_attention(wanting, k, v).sum().backward()
    assert wanting.grad is not None
    slope = torch.randn(1, 4, 1, 30, requires_grad=True)
    step_attention(q, k, v, bias=Written(slope)).sum().backward()
    assert slope.grad is not None
    half = [x.bfloat16() for x in (q, k, v)]
    assert step_attention(*half).dtype == torch.bfloat16
    assert step_attention(q, k[:, :0], v[:, :0]).eq(0).all()
    across = torch.randn(2, 30, 2, 8).transpose(2, 3).contiguous().transpose(2, 3)
    assert not module._fits(q, across, v, None)
    torch.testing.assert_close(step_attention(q, across, v), dense(q, across, v))


def test_a_bias_of_other_sizes_is_for_pytorch_to_refuse():
    q, k, v = drawn(1, 30, 2, 1, (8, 8), torch.float32)
    for shape in ((1, 2, 1, 29), (1, 3, 1, 30), (2, 2, 1, 30)):
        assert not module._fits(q, k, v, Written(torch.randn(shape)))


def test_attention_runs_it_for_one_query_that_sees_everything(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "lengthwise.ops.attention.step_attention", lambda *given: calls.append(given) or step_attention(*given)
    )
    q, k, v = drawn(2, 30, 2, 2, (8, 8))
    torch.testing.assert_close(attention(q, k, v), attention_reference(q, k, v))
    assert len(calls) == 1
    documents = torch.zeros(2, 30, dtype=torch.long)
    documents[1, 20:] = 1
    where = {"query_documents": documents[:, -1:], "key_documents": documents}
    torch.testing.assert_close(attention(q, k, v, **where), attention_reference(q, k, v, **where))
    assert len(calls) == 1
