import os

import pytest
import torch
from torch.nn import functional

from lengthwise.ops import fused
from lengthwise.ops import linear as module
from lengthwise.ops.linear import Linear, linear, together


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("outputs", "features"), [(192, 576), (1000, 300), (7, 5001)])
def test_one_vector_is_mapped_as_pytorch_does(dtype, outputs, features):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, features, dtype=dtype, generator=generator)
    bias = torch.randn(outputs, dtype=dtype, generator=generator)
    x = torch.randn(1, 1, features, dtype=dtype, generator=generator)
    assert weight.numel() >= module.WORTH
    assert fused.direct(dtype, x, weight, bias)
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


def test_maps_of_one_vector_are_those_alone():
    torch.manual_seed(0)
    maps = Linear(300, 200), Linear(300, 7, bias=False), Linear(300, 130)
    x = torch.randn(1, 1, 300)
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                found = together(x, maps)
        finally:
            torch.set_num_threads(before)
        for y, one in zip(found, maps, strict=True):
            torch.testing.assert_close(y, functional.linear(x, one.weight, one.bias))


def test_a_map_that_is_watched_or_is_another_is_called():
    maps, x = [Linear(300, 200), Linear(300, 7)], torch.randn(1, 300)
    seen = []
    maps[1].register_forward_hook(lambda *call: seen.append(call))
    with torch.no_grad():
        together(x, maps)
        assert len(seen) == 1
        maps[1] = torch.nn.Identity()
        assert torch.equal(together(x, maps)[1], x)
    several = together(torch.randn(2, 300), maps[:1])[0]
    several.sum().backward()
    assert maps[0].weight.grad is not None


@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_that_was_forked_maps_too(threads):
    """PyTorch's threads don't survive it."""
    layer, x = Linear(1000, 300), torch.randn(1000)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with torch.no_grad():
        expected = layer(x)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, b"y" if torch.equal(layer(x), expected) else b"n")
            os._exit(0)
        assert os.read(reading, 1) == b"y"
        os.waitpid(child, 0)
    torch.set_num_threads(before)
