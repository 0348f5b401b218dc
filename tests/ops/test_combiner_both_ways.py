import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from lengthwise.ops.attention import attention
from lengthwise.ops.combiner import combiner_reference
from lengthwise.ops.combiner_both_ways import fixed_both_ways, mixture_both_ways
from lengthwise.ops.patterns import full

FORMS = {"fixed": fixed_both_ways, "mixture": mixture_both_ways}


def heads(length, batch=2):
    torch.manual_seed(0)
    return [torch.randn(batch, length, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=40)
@drawn(length=st.integers(1, 33), size=st.integers(1, 9))
def test_equals_the_definition_at_any_length(form, length, size):
    given = heads(length)
    y, expected = FORMS[form](*given, size), combiner_reference(*given, form, size, causal=False)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    weight = torch.randn_like(y)
    for a, b in zip(*(torch.autograd.grad((o * weight).sum(), given) for o in (y, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_one_segment_or_segments_of_one_token_are_dense_attention(form):
    given = heads(11)
    for size in (11, 20, 1):
        dense = attention(*given, pattern=full())
        torch.testing.assert_close(FORMS[form](*given, size), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_no_tokens(form):
    assert FORMS[form](*heads(0), 4).shape == (2, 0, 2, 3)
