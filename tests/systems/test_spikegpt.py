import math

import pytest
import torch
from torch import nn

from lengthwise.channels.spiking import IntegrateAndFire, Spikes
from lengthwise.models.language_model import LanguageModel
from lengthwise.ops.integrate_and_fire import integrate_and_fire_reference
from lengthwise.systems import rwkv_model, spikegpt
from lengthwise.systems.system import Run
from tests.stirred import stir


@pytest.fixture
def small(monkeypatch):
    """Sizes that take a moment."""
    windows = spikegpt.held_out()[::50]
    for name, value in {"STEPS": 2, "BATCH": 2, "DIM": 16, "held_out": lambda: windows}.items():
        monkeypatch.setattr(spikegpt, name, value)


def stirred(name, dim=16, strength=1.0):
    """A model whose blocks aren't silent, as they are at first."""
    torch.manual_seed(0)
    model = rwkv_model.build(spikegpt.MODELS[name], dim)
    stir(model.stack.layers, strength)
    return model.eval()


def test_the_experiment_on_few_steps(small):
    """Blocks begin silent, and two steps don't wake them: the experiment says so."""
    told = []
    figures = list(spikegpt.reproduce(Run(seeds=(0,), progress=lambda text, fraction: told.append(fraction))))
    assert [f.holds for f in figures[:3]] == [True, False, True]
    assert [f.measured for f in figures[3:9]] == [0.0] * 6
    assert figures[9].measured == pytest.approx(0.5, abs=0.1)
    assert figures[-4].holds is False  # bits per byte over the entropy of single bytes
    assert figures[-3].measured == 0  # nothing to shuffle
    assert figures[-2].holds is True
    assert told == [n / 4 for n in range(1, 5)]


@torch.no_grad()
def test_the_order_of_operations():
    """Binary embedding, LN0, then in every block norm, mix, neurons and the residual sum; a norm before the head."""
    model = stirred("SpikeGPT")
    tokens = torch.randint(256, (2, 20))
    x = (model.embedding(tokens) >= 0).float()
    layers = model.stack.layers
    x = nn.functional.layer_norm(x, (16,), layers[1].norm.weight, layers[1].norm.bias)
    fired = []
    for block in layers[2:]:
        mixer = block.part.layers[0]
        spikes, _ = integrate_and_fire_reference(mixer(block.norm(x))[0])
        x = x + spikes
        fired.append(float(spikes.mean()))
    torch.testing.assert_close(model(tokens)[0], model.head(model.norm(x)), rtol=1e-4, atol=1e-4)
    assert len(fired) == len(spikegpt.BLOCKS) == 6
    assert 0.02 < sum(fired) / 6 < 0.6


@torch.no_grad()
def test_without_neurons_and_binary_embedding_it_is_rwkv():
    """The same draws give the same weights, since what spikes has none."""

    class Same(nn.Module):
        def forward(self, x, state=None, layout=None):
            return x, None

    model, plain = stirred("SpikeGPT", strength=0.2), stirred("RWKV-4", strength=0.2)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, IntegrateAndFire | Spikes):
                setattr(module, name, Same())
    tokens = torch.randint(256, (2, 30))
    assert torch.equal(model(tokens)[0], plain(tokens)[0])


def test_what_is_measured():
    ours, theirs = stirred("SpikeGPT"), stirred("RWKV-4")
    found = spikegpt.measure(ours, theirs)
    assert found.other == 0
    assert len(found.rates) == 6
    assert 0.02 < sum(found.rates) / 6 < 0.6
    assert found.embedded == pytest.approx(0.5, abs=0.1)
    assert found.bits[0] != found.bits[2]
    assert not any(module._forward_hooks for module in ours.modules())
    dim, length, layers = 16, spikegpt.LENGTH, 3
    of_spikes, of_numbers = found.operations
    assert of_numbers.multiplied == length * (layers * 13 * dim**2 + dim * 256)
    assert of_spikes.driven == length * (layers * 8 * dim**2 + dim * 256)
    assert of_spikes.multiplied + of_spikes.driven == of_numbers.multiplied
    before = [found.embedded, *found.rates]
    maps = [3, 5] * layers  # time mix: key, value, receptance; channel mix: key of four widths, receptance
    added = sum(rate * count * dim**2 for rate, count in zip(before, maps, strict=False)) + before[-1] * dim * 256
    assert of_spikes.added == pytest.approx(length * added)
    assert found.operations[1].triggered == 0


@torch.no_grad()
def test_shuffled_spikes_are_as_many_in_every_row_and_channel():
    spikes = (torch.rand(3, 50, 4) < 0.3).float()
    generator = torch.Generator().manual_seed(0)
    shuffled, state = spikegpt.shuffle(IntegrateAndFire(4), (spikes, "state"), generator)
    assert state == "state"
    assert torch.equal(shuffled.sum(1), spikes.sum(1))
    assert not torch.equal(shuffled, spikes)
    assert not torch.equal(shuffled[0].sum(-1).argsort(), shuffled[1].sum(-1).argsort())
    assert spikegpt.shuffle(Spikes(4), (spikes, None), generator) is None


def test_entropy():
    assert spikegpt.entropy(torch.arange(256)) == pytest.approx(8)
    assert spikegpt.entropy(torch.zeros(9, dtype=torch.long)) == 0
    assert spikegpt.entropy(torch.tensor([1, 1, 1, 2])) == pytest.approx(2 - 0.75 * math.log2(3))


def test_the_system_is_the_model_that_it_names():
    model = LanguageModel(256, 16, spikegpt.SYSTEM.expression, "none", "layernorm")
    assert sum(isinstance(module, IntegrateAndFire) for module in model.modules()) == 24
    assert isinstance(model.stack.layers[0], Spikes)
