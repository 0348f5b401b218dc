"""Attention to a few listed keys, against its definition and a loop."""

import pytest
import torch

from lengthwise.ops.listed_attention import listed_attention, listed_attention_reference


def inputs(queries, keys=9, count=4, heads=2, head_dim=3, dtype=torch.float64):
    torch.manual_seed(10)
    q = torch.randn(queries, heads, head_dim, dtype=dtype, requires_grad=True)
    kv = torch.randn(keys, 2, heads, head_dim, dtype=dtype, requires_grad=True)
    listed, hidden = torch.randint(keys, (queries, count)), torch.rand(queries, count) < 0.3
    return q, kv, listed, hidden.index_fill(1, torch.tensor([count - 1]), False)


def test_the_definition_by_a_loop():
    q, kv, listed, hidden = inputs(5)
    o = listed_attention_reference(q, kv, listed, hidden)
    for i in range(5):
        k, v = kv[listed[i][~hidden[i]]].unbind(1)
        for head in range(2):
            p = (k[:, head] @ q[i, head] * 3**-0.5).softmax(0)
            torch.testing.assert_close(o[i, head], p @ v[:, head])


@pytest.mark.parametrize("queries", [0, 1, 7, 20_000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_value_and_gradients_are_those_of_the_definition(queries, dtype, tolerance):
    given = inputs(queries, keys=400 if queries > 7 else 9, dtype=dtype)
    o, expected = listed_attention(*given), listed_attention_reference(*given)
    d_o = torch.randn_like(o)
    assert torch.equal(listed_attention(*(t.detach() for t in given)), o)
    gradients = (torch.autograd.grad(x, given[:2], d_o) for x in (o, expected))
    for found, wanted in zip((o, *next(gradients)), (expected, *next(gradients)), strict=True):
        assert found.shape == wanted.shape
        if found.numel():  # the gradient of a key is a sum over all queries that list it
            assert (found - wanted).abs().max() <= tolerance * max(1, float(wanted.abs().max()))


def test_gradients_by_differences():
    q, kv, *lists = inputs(4)
    assert torch.autograd.gradcheck(lambda q, kv: listed_attention(q, kv, *lists), (q, kv))


def test_large_logits_stay_finite():
    q, kv, *lists = (t.detach() for t in inputs(6, dtype=torch.float32))
    torch.testing.assert_close(listed_attention(1e4 * q, kv, *lists), listed_attention_reference(1e4 * q, kv, *lists))


def test_other_types_take_the_definition():
    given = inputs(4, dtype=torch.bfloat16)
    o = listed_attention(*given)
    o.sum().backward()
    assert o.dtype == given[0].grad.dtype == torch.bfloat16
