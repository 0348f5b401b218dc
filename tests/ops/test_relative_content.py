from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.measure import peak_bytes
from lengthwise.ops.attention import attention, attention_reference
from lengthwise.ops.flash_attention import flash_attention
from lengthwise.ops.relative_content import RelativeContent, relative_content_reference


def inputs(queries, keys, rows, dtype=torch.float64, batch=2, heads=2, dim=3):
    torch.manual_seed(0)
    shapes = (batch, queries, heads, dim), (batch, keys, heads, dim), (batch, keys, heads, dim), (heads, rows, dim)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(0, 6),
    st.integers(1, 20),
    st.booleans(),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_equals_the_direct_form_whatever_the_tiles(queries, past, length, both, tile):
    q, k, v, table = inputs(queries, queries + past, 2 * length - 1 if both else length)
    keys, zero = queries + past, length - 1
    bias = RelativeContent(q.transpose(1, 2), table, keys, zero, 0.4)
    direct = relative_content_reference(q.transpose(1, 2), table, keys, zero) * 0.4
    torch.testing.assert_close(bias.written(), direct)
    positions = torch.arange(keys)[None] + 3
    gathered = RelativeContent(q.transpose(1, 2), table, keys, zero, 0.4, positions)
    torch.testing.assert_close(gathered.written(), direct)
    expected = attention_reference(q, k, v, bias=direct)
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v, table))
    for form in (bias, gathered):
        got, _ = flash_attention(q, k, v, bias=form, tile=tile)
        torch.testing.assert_close(got, expected)
        found = torch.autograd.grad(got.square().sum(), (q, k, v, table), retain_graph=True)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)


def test_equals_the_direct_form_in_single_precision():
    q, k, v, table = inputs(70, 70, 64, torch.float32, heads=4, dim=16)
    direct = relative_content_reference(q.transpose(1, 2), table, 70, 63)
    expected = attention_reference(q, k, v, bias=direct / 4)
    got, _ = flash_attention(q, k, v, bias=RelativeContent(q.transpose(1, 2), table, 70, 63, 0.25), tile=(32, 16))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_memory_beside_the_logits_is_a_sixteenth_of_that_of_the_direct_form():
    length, channels = 512, 32
    q, _, _, table = (x.detach() for x in inputs(length, length, length, torch.float32, 1, 1, channels))
    q, logits, found = q.transpose(1, 2), 4 * length * length, []

    def skewed():
        found.append(RelativeContent(q, table, length, length - 1).written())

    def direct():
        found.append(relative_content_reference(q, table, length, length - 1))

    ours, theirs = (peak_bytes(form) - logits for form in (skewed, direct))
    assert theirs >= 16 * ours
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_memory_is_far_below_the_direct_form():
    length = 2048
    q, k, v, table = inputs(length, length, length, torch.float32, batch=1, heads=2, dim=16)

    def step():
        bias = RelativeContent(q.transpose(1, 2), table, length, length - 1, 0.25)
        attention(q, k, v, bias=bias, backend="tiled").sum().backward()

    assert peak_bytes(step) < 2 * length * length * 4
