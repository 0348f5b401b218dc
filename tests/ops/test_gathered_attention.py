from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.ops import gathered_attention as module
from lengthwise.ops.attention import attention_reference
from lengthwise.ops.gathered_attention import gathered_attention
from lengthwise.ops.patterns import causal, full


def inputs(length=9, heads=4, kv_heads=2, batch=2, dim=5, value_dim=3, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = [(heads, dim), (kv_heads, dim), (kv_heads, value_dim)]
    return [torch.randn(batch, length, *shape, dtype=dtype, requires_grad=True) for shape in shapes]


def both(tensors, *indices, also=(), **settings):
    """Value and gradients of the definition and of the fast form."""
    for backend in ("reference", "torch"):
        o = gathered_attention(*tensors, *indices, **settings, backend=backend)
        weights = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)
        yield (o, *torch.autograd.grad((o * weights).sum(), [*tensors, *also]))


def agree(tensors, *indices, tolerance=1e-12, **settings):
    for expected, got in zip(*both(tensors, *indices, **settings), strict=True):
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@settings(max_examples=25, deadline=None)
@given(
    sets=st.integers(0, 3),
    chosen=st.integers(0, 4),
    read=st.integers(0, 6),
    limits=st.sampled_from([(), ("first",), ("last",), ("first", "last")]),
    combine=st.sampled_from(["sum", "average"]),
    at_once=st.sampled_from([1, 30, 2**19]),
    seed=st.integers(0, 99),
)
def test_equals_the_definition(sets, chosen, read, limits, combine, at_once, seed):
    """Any sets, with places that hold nothing and queries that see nothing."""
    tensors, generator = inputs(), torch.Generator().manual_seed(seed)
    queries = torch.randint(-1, 9, (2, 4, sets, chosen), generator=generator)
    keys = torch.randint(-1, 9, (2, 4, sets, read), generator=generator)
    places = torch.randint(0, 9, keys.shape, generator=generator)
    bounds = {name: queries + (1 if name == "last" else -3) for name in limits}
    before, module.AT_ONCE = module.AT_ONCE, at_once
    try:
        o = gathered_attention(*tensors, queries, keys, **bounds, places=places, combine=combine)
        if sets and chosen and read:
            agree(tensors, queries, keys, **bounds, places=places, combine=combine)
        else:
            assert not o.any()
    finally:
        module.AT_ONCE = before


@pytest.mark.parametrize("shape", [(2, 4, 3, 4, 6), (1, 4, 1, 4, 6), (1, 1, 3, 4, 6)])
def test_a_bias_is_added_and_learns(shape, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 60)
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    queries, keys = torch.randint(-1, 9, (2, 4, 3, 4)), torch.randint(-1, 9, (2, 4, 3, 6))
    agree(inputs(), queries, keys, bias=bias, also=[bias])


@pytest.mark.parametrize("pattern", [causal(), full()], ids=repr)
def test_one_set_of_everything_is_attention(pattern):
    q, k, v = inputs()
    everything = torch.arange(9).expand(2, 4, 1, -1)
    last = everything if pattern == causal() else None
    o = gathered_attention(q, k, v, everything, everything, last=last)
    torch.testing.assert_close(o, attention_reference(q, k, v, pattern=pattern), atol=1e-12, rtol=1e-12)


def test_a_query_in_many_sets_is_averaged_and_one_in_none_gets_zero():
    q, k, v = inputs(length=4, heads=1, kv_heads=1, batch=1)
    queries, keys = torch.tensor([[[[0, 1], [0, 2], [0, -1]]]]), torch.tensor([[[[0, 1], [2, 3], [3, -1]]]])
    o = gathered_attention(q, k, v, queries, keys, combine="average")
    parts = [gathered_attention(q, k, v, queries[:, :, s, None], keys[:, :, s, None]) for s in range(3)]
    torch.testing.assert_close(o[:, 0], sum(p[:, 0] for p in parts) / 3.01, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(o[:, 1], parts[0][:, 1] / 1.01, atol=1e-12, rtol=1e-12)
    assert not o[:, 3].any()


def test_scale_is_the_callers():
    q, k, v = inputs()
    index = torch.arange(9).expand(2, 4, 1, -1)
    o = gathered_attention(q, k, v, index, index, scale=1.0)
    torch.testing.assert_close(o, gathered_attention(5**0.5 * q, k, v, index, index), atol=1e-12, rtol=1e-12)


def test_bfloat16_is_close():
    tensors, index = inputs(length=40, heads=2, dim=16, dtype=torch.float32), torch.arange(40).view(1, 1, 4, 10)
    index = index.expand(2, 2, -1, -1)
    with torch.no_grad():
        wide = gathered_attention(*tensors, index, index, last=index)
        small = gathered_attention(*(t.bfloat16() for t in tensors), index, index, last=index)
    assert (small.float() - wide).square().mean().sqrt() < 0.02 * wide.square().mean().sqrt()


def test_memory_grows_with_the_length_alone():
    """Whatever the size of the sets: twice the keys of each set, and no more beside their indices and q, k, v."""

    def peak(length, size):
        index = torch.arange(length).view(1, 1, -1, size).expand(1, 2, -1, -1)
        q, k, v = inputs(length, 2, 2, 1, 16, 16, torch.float32)
        return peak_bytes(lambda: gathered_attention(q, k, v, index, index, last=index).sum().backward())

    assert peak(8192, 256) < 1.3 * 2 * peak(4096, 256)
    assert peak(8192, 1024) < 1.5 * peak(8192, 256)


def test_bad_input_is_refused():
    q, k, v = inputs()
    index = torch.zeros(2, 4, 1, 1, dtype=torch.long)
    with pytest.raises(InputError, match="average"):
        gathered_attention(q, k, v, index, index, combine="averag")
    with pytest.raises(InputError, match="kv_heads=2 and heads=3"):
        gathered_attention(q[:, :, :3], k, v, index[:, :3], index[:, :3])
