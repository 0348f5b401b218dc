"""The hidden layer that keeps no hidden units, against its definition."""

import pytest
import torch

from lengthwise.ops import gelu_mlp as module
from lengthwise.ops.gelu_mlp import gelu_mlp, gelu_mlp_reference


def inputs(tokens, width=5, hidden=12, outputs=3, dtype=torch.float64):
    torch.manual_seed(10)
    shapes = (*tokens, width), (hidden, width), (hidden,), (outputs, hidden), (outputs,)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("tokens", [(0,), (1,), (2, 3), (module.AT_ONCE,), (2 * module.AT_ONCE + 1,), (9000,)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradients_are_those_of_the_definition(tokens, dtype, tolerance):
    given = inputs(tokens, dtype=dtype)
    y, expected = gelu_mlp(*given), gelu_mlp_reference(*given)
    d_y = torch.randn_like(y)
    assert torch.equal(gelu_mlp(*(t.detach() for t in given)), y)
    gradients = (torch.autograd.grad(x, given, d_y) for x in (y, expected))
    for found, wanted in zip((y, *next(gradients)), (expected, *next(gradients)), strict=True):
        assert found.shape == wanted.shape
        if found.numel():  # gradients of weights are sums over all tokens
            assert (found - wanted).abs().max() <= tolerance * max(1, float(wanted.abs().max()))


def test_gradients_by_differences():
    assert torch.autograd.gradcheck(gelu_mlp, inputs((4,)))


def test_hidden_units_far_from_nothing():
    given = [t.detach() * 30 for t in inputs((50,), dtype=torch.float32)]
    torch.testing.assert_close(gelu_mlp(*given), gelu_mlp_reference(*given))


def test_rows_that_lie_apart():
    x, *weights = inputs((7, 2))
    x, weights[0] = x.transpose(0, 1), weights[0].T.contiguous().T
    torch.testing.assert_close(gelu_mlp(x, *weights), gelu_mlp_reference(x, *weights))


@pytest.mark.parametrize("mixed", [False, True])
def test_other_types_take_the_definition(mixed):
    given = inputs((4,), dtype=torch.float32 if mixed else torch.bfloat16)
    with torch.autocast("cpu", enabled=mixed):
        y = gelu_mlp(*given)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert given[0].grad.dtype == given[0].dtype
