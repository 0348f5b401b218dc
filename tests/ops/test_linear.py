import pytest
import torch
from torch.nn import functional

from lengthwise.ops import linear as module
from lengthwise.ops.linear import Linear, linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("outputs", "features"), [(192, 576), (1000, 300), (7, 5001)])
def test_one_vector_is_mapped_as_pytorch_does(dtype, outputs, features):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, features, dtype=dtype, generator=generator)
    bias = torch.randn(outputs, dtype=dtype, generator=generator)
    x = torch.randn(1, 1, features, dtype=dtype, generator=generator)
    assert module._alone(x, weight, bias)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    tolerance = 1e-3 if dtype == torch.float32 else 1e-10  # thousands of products are summed in another order
    torch.testing.assert_close(linear(x, weight, bias).double(), exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(linear(x, weight).double(), exact - bias, rtol=0, atol=tolerance)


def test_what_is_not_finite_stays_so():
    weight, x = torch.ones(200, 300), torch.ones(300)
    weight[3, 5], weight[4, 6] = torch.nan, torch.inf
    y = linear(x, weight)
    assert y[3].isnan()
    assert y[4].isinf()
    assert y[5] == 300


def test_all_else_is_left_to_pytorch():
    layer, x = Linear(300, 200), torch.randn(1, 300)
    for call in (torch.randn(2, 300), x):
        assert torch.equal(layer(call), functional.linear(call, layer.weight, layer.bias))  # a gradient may be wanted
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
