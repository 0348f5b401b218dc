from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.caches.sums import add_sums, channels, split_sums
from lengthwise.contract import Layout, state_nbytes
from lengthwise.mixers.attention import Attention
from lengthwise.positions.cable import Cable

KV_HEADS, HEADS, HEAD_DIM = 2, 4, 3


def inputs(batch, length, dtype=torch.float64):
    torch.manual_seed(length)
    return torch.randn(batch, length, KV_HEADS, HEAD_DIM).to(dtype), -torch.rand(batch, length, HEADS)


def run(keys, steps, cuts, layout=None):
    """The keys with their sums, read in pieces of which each is given what the last one left."""
    past = keys.new_zeros(len(keys), 0, KV_HEADS, HEAD_DIM + channels(HEADS, KV_HEADS, keys.dtype))
    for begin, end in pairwise(cuts):
        part = None if layout is None else layout.slice(begin, end)
        past = torch.cat([past, add_sums(keys[:, begin:end], steps[:, begin:end], past, part)], dim=1)
    return past


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_keys_come_back_as_they_were_and_sums_in_the_precision_of_float32(dtype):
    keys, steps = inputs(2, 500, dtype)
    got_keys, sums = split_sums(run(keys, 10 * steps, [0, 500]), HEAD_DIM, HEADS)
    assert torch.equal(got_keys, keys)
    assert sums.dtype == torch.promote_types(dtype, torch.float32)
    expected = (10 * steps).double().cumsum(1)
    # half a unit in the last of float32's 24 bits, and as much again from adding up the parts
    torch.testing.assert_close(sums.double(), expected, rtol=2**-23 if dtype != torch.float64 else 1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_long_sums_are_kept_and_pass_their_gradient_on_once(dtype):
    keys, steps = inputs(1, 300, dtype)
    steps = (1000 * steps).requires_grad_()
    _, sums = split_sums(run(keys, steps, [0, 300]), HEAD_DIM, HEADS)
    assert sums.min() < -100_000
    torch.testing.assert_close(sums.double(), steps.double().cumsum(1), rtol=2**-23, atol=0)
    weights = torch.linspace(-1, 1, 300)[:, None].expand_as(sums)
    (found,) = torch.autograd.grad(sums, steps, weights)
    # a gradient is rounded to the dtype of the keys, and 300 of them are summed
    tolerance = 300 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, weights.flip(1).cumsum(1).flip(1), rtol=0, atol=tolerance)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
def test_every_document_sums_its_own_steps_wherever_it_is_cut(rows, cuts):
    layout = Layout.packed(rows)
    batch, length = layout.documents.shape
    keys, steps = inputs(batch, length)
    _, sums = split_sums(run(keys, steps, [0, *sorted(min(c, length) for c in cuts), length], layout), HEAD_DIM, HEADS)
    for r, row in enumerate(rows):
        begin = 0
        for size in row:
            document = slice(begin, begin + size)
            torch.testing.assert_close(sums[r, document], steps[r, document].double().cumsum(0))
            begin += size


def test_without_a_layout_sums_go_on_from_the_last_key():
    keys, steps = inputs(2, 9)
    _, sums = split_sums(run(keys, steps, [0, 0, 4, 5, 9]), HEAD_DIM, HEADS)
    torch.testing.assert_close(sums, steps.double().cumsum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings", [{}, {"kv_heads": 2}, {"kv_heads": 1, "window": 3}, {"window": 1}], ids=["all", "two", "window", "none"]
)
def test_a_cache_is_larger_by_a_sum_for_each_head_in_float32_or_three_parts(settings, dtype):
    layer = Attention(8, heads=4, position=Cable(8, heads=4), **settings).to(dtype)
    _, state = layer(torch.randn(1, 7, 8, dtype=dtype))
    assert state_nbytes(state) == layer.state_nbytes(7)
    tokens = 7 if layer.window is None else min(7, layer.window - 1)
    plain = 2 * layer.kv_heads * layer.head_dim
    assert layer.state_nbytes(7) == tokens * (plain + 4 * (1 if dtype == torch.float32 else 3)) * dtype.itemsize
