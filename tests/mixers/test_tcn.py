import pytest
import torch
from torch.nn import functional as F

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.tcn import TCN


def drawn(dim=3, **settings):
    torch.manual_seed(0)
    module = TCN(dim, **settings).double()
    for layer in module.layers:
        torch.nn.init.normal_(layer.bias)
    return module


@pytest.mark.parametrize("depthwise", [True, False])
def test_equals_padded_convolutions_of_pytorch(depthwise):
    module = drawn(kernel=3, dilation_factor=2, levels=3, depthwise=depthwise, activation="relu")
    x = torch.randn(2, 23, 3, dtype=torch.float64)
    a = x
    for layer, dilation in zip(module.layers, (1, 2, 4), strict=True):
        a = a + layer(F.pad(a.mT, (2 * dilation, 0))).mT.relu()
    torch.testing.assert_close(module(x)[0], a, rtol=0, atol=1e-12)


def test_both_directions_equal_evenly_padded_convolutions():
    module = drawn(kernel=5, dilation_factor=3, levels=2, causal=False)
    x = torch.randn(2, 23, 3, dtype=torch.float64)
    a = x
    for layer, dilation in zip(module.layers, (1, 3), strict=True):
        a = a + F.silu(layer(F.pad(a.mT, (2 * dilation, 2 * dilation))).mT)
    y, state = module(x)
    assert state is None
    torch.testing.assert_close(y, a, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kernel", "factor", "levels"), [(3, 3, 2), (3, 2, 3), (2, 2, 4), (5, 5, 2), (4, 1, 2)])
def test_sees_as_far_as_it_says_and_no_further(kernel, factor, levels):
    module = drawn(kernel=kernel, dilation_factor=factor, levels=levels, activation=None)
    reach = 1 + (kernel - 1) * sum(factor**s for s in range(levels))
    assert module.receptive_field == reach
    x = torch.randn(1, reach + 5, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(module(x)[0][0, -1].sum(), x)
    seen = slope[0].abs().sum(-1).flip(0)
    assert seen[:reach].gt(0).all()
    assert seen[reach:].eq(0).all()


def test_with_a_dilation_of_the_kernel_each_token_is_reached_by_one_path():
    """With weights of one and what passes the layers by taken off, the output is the sum of the last K^S inputs."""
    module = TCN(1, kernel=3, levels=3, activation=None).double()
    for layer in module.layers:
        layer.weight.data.fill_(1)
    x = torch.randn(1, 60, 1, dtype=torch.float64)
    a = x
    for number in range(3):
        a, _ = module.causal_layer(number, a, None, None)
    summed = F.conv1d(F.pad(x.mT, (26, 0)), torch.ones(1, 1, 27, dtype=torch.float64)).mT
    torch.testing.assert_close(a, summed, rtol=0, atol=1e-12)


def test_a_larger_dilation_leaves_holes():
    module = drawn(dim=1, kernel=2, dilation_factor=4, levels=2, activation=None)
    x = torch.randn(1, 12, 1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(module(x)[0][0, -1].sum(), x)
    assert slope[0, :, 0].flip(0).ne(0).tolist() == [True, True, False, False, True, True] + [False] * 6


@torch.no_grad()
def test_a_decoded_token_copies_no_history():
    module = drawn(kernel=9, levels=3).eval()
    _, state = module(torch.randn(1, 50, 3, dtype=torch.float64))
    places = set()
    for _ in range(100):
        _, state = module(torch.randn(1, 1, 3, dtype=torch.float64), state)
        places.add(state.histories[-1].inputs.untyped_storage().data_ptr())
    assert len(places) <= 2


@torch.no_grad()
def test_a_token_that_begins_a_document_forgets_the_history():
    module = drawn(kernel=3, levels=2).eval()
    _, state = module(torch.randn(2, 9, 3, dtype=torch.float64))
    token = torch.randn(2, 1, 3, dtype=torch.float64)
    begun = Layout(torch.tensor([[0], [9]]), torch.tensor([[1], [0]]))
    y, _ = module(token, state, begun)
    torch.testing.assert_close(y[:1], module(token[:1])[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(y[1:], module(token, state)[0][1:], rtol=0, atol=1e-12)


@torch.no_grad()
def test_half_precision_one_by_one_is_that_at_once():
    torch.manual_seed(0)
    module, x = TCN(8, kernel=3, levels=2).bfloat16(), torch.randn(1, 12, 8).bfloat16()
    whole, state = module(x)[0], None
    for t in range(12):
        y, state = module(x[:, t : t + 1], state)
        assert y.dtype == torch.bfloat16
        assert state.histories[1].inputs.dtype == torch.float32
        torch.testing.assert_close(y, whole[:, t : t + 1], rtol=2**-7, atol=2**-7)  # one rounding apart


@torch.no_grad()
@pytest.mark.parametrize(("depthwise", "inputs"), [(True, 9), (False, 9 * 300)])
def test_begins_with_outputs_as_large_as_its_inputs(depthwise, inputs):
    torch.manual_seed(0)
    for layer in TCN(300, kernel=9, levels=2, depthwise=depthwise).layers:
        assert layer.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.05)
        assert layer.bias.eq(0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": 0}, "kernel must be at least 1, got 0"),
        ({"levels": 0}, "levels must be at least 1"),
        ({"dilation_factor": 0}, "dilation_factor must be at least 1"),
        ({"activation": "sillu"}, "did you mean silu"),
        ({"kernel": 4, "causal": False}, "odd number of taps, got kernel=4"),
    ],
)
def test_impossible_sizes_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        TCN(4, **settings)
