import math

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.mixers.moving_average import DampedEMA
from lengthwise.ops.long_convolution import long_convolution


def module(states=3, **settings):
    torch.manual_seed(0)
    return DampedEMA(5, states=states, **settings).double()


def looped(mixer, x, direction=0):
    """The definition, one token after the other."""
    p, d = mixer.alpha[direction].sigmoid(), mixer.delta[direction].sigmoid()
    h, out = torch.zeros(len(x), *p.shape, dtype=x.dtype), []
    for token in x.unbind(1):
        h = p * mixer.beta[direction] * token[..., None] + (1 - p * d) * h
        out.append((mixer.eta[direction] * h).sum(-1) / math.sqrt(p.shape[1]))
    return torch.stack(out, 1)


@torch.no_grad()
def test_equals_the_definition():
    mixer, x = module(), torch.randn(2, 40, 5, dtype=torch.float64)
    torch.testing.assert_close(mixer(x)[0], looped(mixer, x) + mixer.omega * x, rtol=0, atol=1e-12)


@torch.no_grad()
def test_both_directions_count_the_token_itself_once():
    mixer, x = module(causal=False), torch.randn(2, 40, 5, dtype=torch.float64)
    ahead, back = looped(mixer, x), looped(mixer, x.flip(1), 1).flip(1)
    itself = looped(mixer, x[:, :1], 1)[:, 0] / x[:, 0]
    torch.testing.assert_close(mixer(x)[0], ahead + back - itself[:1] * x + mixer.omega * x, rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 40, 1000])
def test_the_taps_are_those_of_the_same_average(length):
    mixer, x = module(), torch.randn(1, length, 5, dtype=torch.float64)
    y = long_convolution(x, mixer.taps(length)) + mixer.omega * x
    torch.testing.assert_close(mixer(x)[0], y, rtol=0, atol=1e-10)


@torch.no_grad()
def test_begins_as_published():
    mixer = DampedEMA(400, states=16)
    assert mixer.alpha.std().item() == pytest.approx(0.2, rel=0.05)
    assert mixer.delta.std().item() == pytest.approx(0.2, rel=0.05)
    signs = torch.tensor([1.0, -1.0]).repeat(8)
    assert (mixer.beta - signs).std().item() == pytest.approx(0.02, rel=0.05)
    assert mixer.eta.std().item() == pytest.approx(1, rel=0.05)
    assert mixer.omega.std().item() == pytest.approx(1, rel=0.15)


def test_no_average_is_refused():
    with pytest.raises(InputError, match="states must be at least 1, got 0"):
        DampedEMA(4, states=0)
