"""A decoder's attention to its source."""

import pytest
import torch

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.cross_attention import CrossAttention
from lengthwise.ops import attention as op
from lengthwise.ops.backend import use


@torch.no_grad()
def test_cross_attention_is_softmax_attention_to_the_source():
    reader = CrossAttention(8, heads=4, kv_heads=2, bias=True).double()
    for parameter in reader.parameters():
        parameter.normal_()
    x, source = torch.randn(2, 5, 8).double(), torch.randn(2, 3, 8).double()
    q = (x @ reader.q_proj.weight.T + reader.q_proj.bias).unflatten(-1, (4, 2))
    k, v = (
        (source @ p.weight.T + p.bias).unflatten(-1, (2, 2)).repeat_interleave(2, 2)
        for p in (reader.k_proj, reader.v_proj)
    )
    p = (torch.einsum("bihd, bjhd -> bhij", q, k) / 2**0.5).softmax(-1)
    expected = reader.o_proj(torch.einsum("bhij, bjhd -> bihd", p, v).flatten(2))
    state = reader.begin(source)
    y, after = reader(x, state)
    torch.testing.assert_close(y, expected)
    assert after.keys is state.keys  # the source is neither copied nor made anew


@torch.no_grad()
def test_without_a_source_token_the_bias_of_the_output_is_left():
    reader = CrossAttention(8, heads=2, bias=True).double()
    reader.o_proj.bias.data.normal_()
    y, _ = reader(torch.randn(1, 3, 8).double(), reader.begin(torch.randn(1, 0, 8).double()))
    torch.testing.assert_close(y, reader.o_proj.bias.expand(1, 3, 8))


def test_without_a_source_there_is_one_clear_error():
    with pytest.raises(InputError, match="no source to read"):
        CrossAttention(8)(torch.zeros(1, 2, 8))


@pytest.mark.parametrize("largest", [op.WRITTEN, 100])
@pytest.mark.parametrize(("source", "length"), [(70, 30), (30, 70), (5, 200)])
def test_any_sizes_give_what_the_reference_gives(source, length, largest, monkeypatch):
    """With padding and several documents, value and gradient, whether or not the mask is small enough to be written."""
    torch.manual_seed(0)
    reader = CrossAttention(8, heads=2).double()
    layout = Layout.packed([[source - source // 3, source // 3], [source // 2]])
    target = Layout.packed([[length - 1, 1], [length]])
    inputs = [torch.randn(2, n, 8, dtype=torch.float64, requires_grad=True) for n in (length, source)]
    monkeypatch.setattr(op, "WRITTEN", largest)
    results = []
    for form in ("reference", "auto"):
        with use(form):
            y, _ = reader(inputs[0], reader.begin(inputs[1], layout), target)
            results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected)
