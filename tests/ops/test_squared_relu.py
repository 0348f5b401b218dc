import pytest
import torch
from torch.nn import functional

from lengthwise.ops.squared_relu import squared_relu


@pytest.mark.parametrize("shape", [(0,), (3, 5), (2, 3, 4)])
def test_value_and_gradient_are_those_of_the_definition(shape):
    torch.manual_seed(0)
    x, d_y = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    expected = functional.relu(x).square()
    y = squared_relu(x)
    assert torch.equal(y, expected)
    assert torch.equal(squared_relu(x.detach()), expected)
    torch.testing.assert_close(torch.autograd.grad(y, x, d_y), torch.autograd.grad(expected, x, d_y))


def test_the_input_stays_as_it_was():
    x = torch.tensor([-2.0, 3.0])
    squared_relu(x)
    assert x.tolist() == [-2.0, 3.0]


def test_gradients_by_differences():
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(squared_relu, torch.randn(4, 3, dtype=torch.float64, requires_grad=True))


def test_half_precision_stays_half():
    x = torch.randn(4, dtype=torch.bfloat16, requires_grad=True)
    y = squared_relu(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
