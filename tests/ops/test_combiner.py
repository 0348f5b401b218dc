import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.ops.attention import attention
from lengthwise.ops.combiner import BOTH_WAYS, FORMS, combiner_reference, partition
from lengthwise.ops.patterns import full


def heads(length, batch=2):
    torch.manual_seed(0)
    return [torch.randn(batch, length, 2, 3, dtype=torch.float64) for _ in range(3)]


@given(form=st.sampled_from(FORMS), size=st.integers(1, 9), i=st.integers(0, 60))
def test_what_a_token_sees_is_covered_once(form, size, i):
    """By mixture twice, but for the token's own row and column."""
    direct, regions = partition(form, i, size, i + 1)
    count = torch.zeros(i + 1, dtype=torch.long)
    for j in [*direct, *(j for region in regions for j in region.tokens)]:
        count[j] += 1
    twice = torch.arange(i + 1)
    twice = (twice < i // size * size) & (twice % size != i % size) if form == "mixture" else twice < 0
    assert torch.equal(count, 1 + twice.long())
    assert len(set(direct)) == len(direct)
    assert all(len(region.tokens) for region in regions)


@given(form=st.sampled_from(BOTH_WAYS), size=st.integers(1, 9), length=st.integers(1, 40), i=st.integers(0, 39))
def test_both_ways_all_tokens_are_covered_once(form, size, length, i):
    """By mixture twice, but for the token's own row and column."""
    i %= length
    direct, regions = partition(form, i, size, length, causal=False)
    count = torch.zeros(length, dtype=torch.long)
    for j in [*direct, *(j for region in regions for j in region.tokens)]:
        count[j] += 1
    j = torch.arange(length)
    twice = (j // size != i // size) & (j % size != i % size) & (form == "mixture")
    assert torch.equal(count, 1 + twice.long())


def test_as_many_entries_as_the_paper_says():
    for form, width in {"fixed": 4 + 7, "axial": 4 + 7, "mixture": 7 + 4 + 3 + 7 + 7}.items():
        direct, regions = partition(form, 30, 4, 31)
        assert len(direct) + len(regions) == width - (form != "logsparse")
    assert len(partition("logsparse", 31, 4, 32)[1]) == 5


def test_where_regions_are_single_tokens_it_is_attention():
    q, k, v = heads(9)
    dense = attention(q, k, v)
    torch.testing.assert_close(combiner_reference(q, k, v, "fixed", 1), dense, rtol=0, atol=1e-12)
    for form in ("fixed", "axial", "mixture"):
        torch.testing.assert_close(combiner_reference(q, k, v, form, 9), dense, rtol=0, atol=1e-12)
    two = combiner_reference(*(x[:, :2] for x in (q, k, v)), "logsparse", 1)
    torch.testing.assert_close(two, dense[:, :2], rtol=0, atol=1e-12)
    both = combiner_reference(q, k, v, "fixed", 1, causal=False)
    torch.testing.assert_close(both, attention(q, k, v, pattern=full()), rtol=0, atol=1e-12)


def test_bad_input():
    with pytest.raises(InputError, match="logsparse"):
        partition("logspase", 3, 2, 4)
    with pytest.raises(InputError, match="fixed and mixture read both ways"):
        partition("axial", 3, 2, 4, causal=False)
