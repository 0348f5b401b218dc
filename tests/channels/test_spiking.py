"""Spiking parts by hand: what fires, what the gradient is, and what stands between a block and its residual stream."""

import math

import pytest
import torch

from lengthwise.channels.spiking import IntegrateAndFire, Spikes
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.models.build import build


def test_an_embedding_of_spikes_is_one_where_it_is_not_negative():
    x = torch.tensor([[[-1.0, 0.0, 0.5]]], requires_grad=True)
    y, state = Spikes(3)(x)
    assert (y.tolist(), state) == ([[[0.0, 1.0, 1.0]]], None)
    slopes = torch.autograd.grad(y.sum(), x)[0]
    torch.testing.assert_close(slopes, 1 / (1 + (math.pi * x.detach()) ** 2))


def test_neurons_leak_fire_and_begin_anew():
    x = torch.tensor([[[1.5], [1.5], [1.5], [1.5]]])
    spikes, state = IntegrateAndFire(1)(x)  # charged to 0.75, 1.125 and again
    assert spikes.flatten().tolist() == [0, 1, 0, 1]
    assert state.membrane.item() == 0
    spikes, state = IntegrateAndFire(1)(x, None, Layout.packed([[1, 3]]))
    assert spikes.flatten().tolist() == [0, 0, 1, 0]
    assert state.membrane.item() == 0.75
    assert IntegrateAndFire(1)(x[:, :1], state)[0].item() == 1


@torch.no_grad()
def test_a_chain_adds_spikes_to_the_residual_stream():
    torch.manual_seed(0)
    branch = build("chain(min_gru + integrate_and_fire) + mlp", dim=8).layers[0]
    for parameter in branch.parameters():
        parameter.mul_(4)
    x = torch.randn(2, 30, 8)
    added = (branch(x)[0] - x).round(decimals=4)
    assert set(added.flatten().tolist()) == {0.0, 1.0}
    assert 0.02 < added.mean() < 0.8


def test_a_leak_of_less_than_a_token_is_an_error():
    with pytest.raises(InputError, match="tau must be at least 1, got 0"):
        IntegrateAndFire(3, tau=0)
