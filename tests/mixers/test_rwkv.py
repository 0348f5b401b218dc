"""RWKV-4's two halves: where they begin, what they see, and what they are without their own weights."""

import math

import pytest
import torch

from lengthwise.channels.rwkv import RWKVChannels
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.rwkv import RWKV
from lengthwise.models.build import build
from lengthwise.ops.token_shift import token_shift
from tests.stirred import stir


def stirred(module):
    """With random weights: the branches begin silent."""
    torch.manual_seed(1)
    return stir(module).double()


def test_initial_values():
    first, last = RWKV(64, layer=0, layers=4), RWKV(64, layer=3, layers=4)
    assert first.time_decay[0] == last.time_decay[0] == -5
    torch.testing.assert_close((first.time_decay[-1], last.time_decay[-1]), (torch.tensor(3.0), torch.tensor(3.0)))
    assert float(first.time_decay[32]) == pytest.approx(-5 + 8 * (32 / 63) ** 0.7, abs=1e-6)
    assert float(last.time_decay[32]) == pytest.approx(-5 + 8 * (32 / 63) ** 2.0, abs=1e-6)
    assert first.time_first[:3].tolist() == pytest.approx([math.log(0.3) + x for x in (0.0, 0.5, -0.5)])
    assert float(first.time_mix_key[16]) == pytest.approx(0.25)
    assert float(last.time_mix_key[16]) == pytest.approx(0.25**0.25, rel=1e-5)
    assert float(last.time_mix_value[16]) == pytest.approx(0.25**0.25 + 0.3, rel=1e-5)
    assert float(first.time_mix_receptance[16]) == pytest.approx(0.5)
    torch.testing.assert_close(first.value.weight @ first.value.weight.T, torch.eye(64), rtol=0, atol=1e-5)
    for silent in (first.key, first.receptance, first.output):
        assert not silent.weight.any()
    channels = RWKVChannels(64)
    torch.testing.assert_close(channels.key.weight.T @ channels.key.weight, 4 * torch.eye(64), rtol=0, atol=1e-4)
    assert not channels.value.weight.any()
    assert not channels.receptance.weight.any()
    assert first.time_decay.no_weight_decay
    assert RWKV(8, layer=0, layers=1).time_decay.isfinite().all()


def test_a_model_of_one_layer_and_of_many_begins_as_its_embedding():
    x = torch.randn(1, 5, 8)
    for expression in ("1*(rwkv + rwkv_channels)", "3*(rwkv + rwkv_channels)"):
        torch.testing.assert_close(build(expression, dim=8)(x)[0], x)
    numbered = build("3*(rwkv + rwkv_channels)", dim=8)
    shares = [layer.part.time_mix_key for layer in numbered.layers]
    assert torch.equal(shares[0], shares[1])
    assert not torch.equal(shares[0], shares[2])


@torch.no_grad()
@pytest.mark.parametrize("kind", [RWKV, RWKVChannels])
@pytest.mark.parametrize("cut", [0, 1, 9, 20])
def test_goes_on_from_any_cut(kind, cut):
    mixer = stirred(kind(6))
    x = torch.randn(2, 20, 6, dtype=torch.float64)
    whole, last = mixer(x)
    first, state = mixer(x[:, :cut])
    second, after = mixer(x[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(after.last, last.last)


@torch.no_grad()
@pytest.mark.parametrize("kind", [RWKV, RWKVChannels])
def test_no_document_sees_another(kind):
    mixer = stirred(kind(6))
    x = torch.randn(1, 12, 6, dtype=torch.float64)
    layout = Layout.packed([[5, 1, 6]])
    packed, _ = mixer(x, None, layout)
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        torch.testing.assert_close(packed[:, part], mixer(x[:, part])[0])
    changed = x.clone()
    changed[:, :5] += 1
    assert torch.equal(mixer(changed, None, layout)[0][:, 5:], packed[:, 5:])


def test_token_shift():
    x, before = torch.arange(6.0).reshape(1, 6, 1), torch.tensor([[9.0]])
    shifted, last = token_shift(x, before, torch.tensor([[False, False, True, False, False, True]]))
    assert shifted.flatten().tolist() == [9, 0, 0, 2, 3, 0]
    assert last.item() == 5
    shifted, last = token_shift(x[:, :0], before)
    assert shifted.shape == (1, 0, 1)
    assert torch.equal(last, before)


def test_hidden_below_1_is_an_error():
    with pytest.raises(InputError, match="hidden must be at least 1, got 0"):
        RWKVChannels(8, hidden=0)
