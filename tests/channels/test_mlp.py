import pytest
import torch
from torch.nn import functional

from lengthwise.channels.mlp import MLP
from lengthwise.errors import InputError


@pytest.mark.parametrize(
    ("activation", "function"),
    [("gelu", functional.gelu), ("relu", torch.relu), ("sigmoid_gelu", lambda x: x * torch.sigmoid(1.702 * x))],
)
def test_the_formula(activation, function):
    mlp, x = MLP(6, activation=activation), torch.randn(2, 5, 6)
    y, state = mlp(x)
    expected = function(x @ mlp.up.weight.T + mlp.up.bias) @ mlp.down.weight.T + mlp.down.bias
    torch.testing.assert_close(y, expected)
    assert state is None


def test_widths_and_biases():
    assert MLP(6).up.weight.shape == (24, 6)
    assert MLP(6, hidden=7).up.weight.shape == (7, 6)
    assert len(list(MLP(6, bias=False).parameters())) == 2


def test_the_output_begins_smaller_in_a_deep_model():
    torch.manual_seed(0)
    shallow, deep = MLP(128), MLP(128, depth=16)
    torch.testing.assert_close(shallow.down.weight.std().item(), 0.02, rtol=0.05, atol=0)
    torch.testing.assert_close(deep.down.weight.std().item(), 0.005, rtol=0.05, atol=0)


@pytest.mark.parametrize(("settings", "message"), [({"hidden": 0}, "hidden"), ({"activation": "gellu"}, "gelu")])
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        MLP(6, **settings)
