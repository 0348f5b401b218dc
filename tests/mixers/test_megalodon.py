import math

import pytest
import torch

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.megalodon import Megalodon
from lengthwise.models.build import build
from tests.stirred import stir

SMALL = {"chunk": 5, "z_dim": 8, "value_dim": 12, "states": 3, "groups": 4}


def stirred(dim=8, **settings):
    """A mixer in float64 whose parameters are moved off where they begin."""
    torch.manual_seed(0)
    return stir(Megalodon(dim, **{**SMALL, **settings}).double())


def turned(vector, place, base):
    """One head's vector, its two halves the parts of complex numbers, turned to its place."""
    half = len(vector) // 2
    rates = base ** (-torch.arange(half, dtype=torch.float64) / half)
    numbers = torch.complex(vector[:half], vector[half:]) * torch.polar(torch.ones_like(rates), place * rates)
    return torch.cat([numbers.real, numbers.imag])


def by_definition(mixer, x, heads, base=10000.0):
    """One row, token by token, from nothing but the formulas; statistics are recomputed of the whole past."""
    p = dict(mixer.named_parameters())
    dim, groups, z_dim, value_dim = x.shape[1], mixer.norm.groups, mixer.z_dim, mixer.value_dim
    weights, biases = p["m_proj.weight"], p["m_proj.bias"]
    w_z, w_r, w_m = weights.split((z_dim, value_dim, dim))
    b_z, b_r, b_m = biases.split((z_dim, value_dim, dim))
    states = p["average.alpha"].shape[1]
    fade, take = 1 - p["average.alpha"].sigmoid() * p["average.delta"].sigmoid(), p["average.alpha"].sigmoid()
    number = torch.arange(1, states + 1, dtype=torch.float64)
    q = fade * torch.exp(2j * math.pi / states * number * p["average.theta"].sigmoid())
    gamma = torch.view_as_complex(p["average.gamma"]) / math.sqrt(states)
    h, keys, values, outputs = torch.zeros(dim, states, dtype=torch.complex128), [], [], []
    silu = torch.nn.functional.silu
    for t in range(len(x)):
        seen = x[: t + 1].view(t + 1, groups, -1).transpose(0, 1).flatten(1)
        spread = (seen.var(1, correction=0) + 1e-5).sqrt()
        n = ((x[t].view(groups, -1) - seen.mean(1)[:, None]) / spread[:, None]).flatten()
        n = n * (1 + p["norm.weight"]) + p["norm.bias"]
        h = q * h + take * n[:, None]
        m = (gamma * h).sum(1).real + p["average.omega"] * n
        m = m / (m.square().mean() + 1e-5).sqrt() * (1 + p["average_weight"])
        z = (w_z @ m + b_z).view(heads, -1)
        z = (z / (z.square().mean(1, keepdim=True) + 1e-5).sqrt()).flatten()
        scaled = [z * (1 + p["gain"][i]) / math.sqrt(z_dim / heads) + p["shift"][i] for i in (0, 1)]
        if t % mixer.chunk == 0:
            keys, values = [], []
        query, key = (torch.stack([turned(head, t % mixer.chunk, base) for head in s.view(heads, -1)]) for s in scaled)
        keys.append(key)
        values.append(silu(p["v_proj.weight"] @ n + p["v_proj.bias"]).view(heads, -1))
        logits = torch.stack([(query * k).sum(1) for k in keys])
        o = (logits.softmax(0)[..., None] * torch.stack(values)).sum(0).flatten()
        outputs.append(w_m @ m + b_m + p["o_proj.weight"] @ (o * silu(w_r @ m + b_r)))
    return torch.stack(outputs)


@torch.no_grad()
@pytest.mark.parametrize(("heads", "base"), [(1, 10000.0), (2, 50.0)])
def test_equals_the_formulas_token_by_token(heads, base):
    mixer, x = stirred(heads=heads, base=base), torch.randn(2, 17, 8, dtype=torch.float64)
    y, _ = mixer(x)
    for row in range(2):
        torch.testing.assert_close(y[row], by_definition(mixer, x[row], heads, base), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 6, 13, 17])
def test_goes_on_from_any_cut(cut):
    mixer, x = stirred(), torch.randn(2, 17, 8, dtype=torch.float64)
    whole, last = mixer(x)
    first, state = mixer(x[:, :cut])
    second, state = mixer(x[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(state.average.averages, last.average.averages)
    torch.testing.assert_close(state.chunk.keys, last.chunk.keys)


def test_chunks_begin_with_their_document():
    mixer, x = stirred(), torch.randn(1, 15, 8, dtype=torch.float64)
    packed, _ = mixer(x, None, Layout.packed([[3, 12]]))
    torch.testing.assert_close(packed[:, :3], mixer(x[:, :3])[0])
    torch.testing.assert_close(packed[:, 3:], mixer(x[:, 3:])[0])


def test_queries_and_keys_begin_as_the_same_vector_of_length_one():
    torch.manual_seed(0)
    mixer = Megalodon(32, heads=2)
    q, k = mixer.queries_and_keys(torch.randn(1, 5, mixer.z_dim))
    assert torch.equal(q, k)
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(1, 5, 2), rtol=1e-3, atol=0)  # eps


@pytest.mark.parametrize(
    ("dim", "heads", "z_dim"), [(1024, 1, 256), (2048, 2, 512), (96, 1, 24), (12, 1, 2), (8, 4, 8)]
)
def test_queries_are_about_a_fourth_as_wide_as_the_model(dim, heads, z_dim):
    assert Megalodon(dim, heads=heads).z_dim == z_dim


def test_initial_values():
    torch.manual_seed(0)
    mixer = Megalodon(256)
    assert (mixer.z_dim, mixer.value_dim, mixer.norm.groups) == (64, 512, 8)
    for layer in (mixer.m_proj, mixer.v_proj, mixer.o_proj):
        expected = 1 / math.sqrt(3 * layer.in_features)
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert layer.bias is None or (layer.bias == 0).all()
    assert all(p.no_weight_decay for p in (mixer.gain, mixer.shift, mixer.average_weight))
    assert mixer.o_proj.bias is None


def test_the_second_hop_starts_from_the_input_of_the_block():
    torch.manual_seed(0)
    block = build("two_hop(megalodon(chunk=4) + chain(layernorm + swiglu))", dim=8).double()
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    mixer, channels = block.first.part, block.second.part
    y = x + mixer(x)[0]
    torch.testing.assert_close(block(x)[0], x + channels(y)[0])


@pytest.mark.parametrize("length", [1, 4, 5, 7, 100])
def test_the_state_is_bounded_by_the_chunk(length):
    mixer = Megalodon(8, **SMALL)
    _, state = mixer(torch.randn(1, length, 8))
    statistics, averages = 8 + 2 * 4 * 4, 2 * 4 * 8 * 3
    assert state.nbytes == mixer.state_nbytes(length) == statistics + averages + 4 * (length % 5) * (8 + 12)


def test_half_precision_keeps_the_recurrences_in_float32():
    mixer = Megalodon(8, **SMALL).bfloat16()
    y, state = mixer(torch.randn(1, 7, 8, dtype=torch.bfloat16))
    assert y.dtype == state.chunk.keys.dtype == torch.bfloat16
    assert state.norm.mean.dtype == state.average.averages.dtype == torch.float32


def test_under_autocast():
    torch.manual_seed(0)
    mixer, x = Megalodon(16, chunk=8), torch.randn(1, 30, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x)
    assert state.norm.mean.dtype == state.average.averages.dtype == torch.float32
    torch.testing.assert_close(y.float(), mixer(x)[0], rtol=0.1, atol=0.05)  # eight bits of mantissa


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk": 0}, "chunk must be at least 1 token, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"heads": 3}, "heads must divide value_dim: got heads=3 and value_dim=32"),
        ({"z_dim": 0}, "heads must divide z_dim: got heads=1 and z_dim=0"),
        ({"z_dim": 6, "heads": 2}, "z_dim / heads must be even, got 6 / 2"),
        ({"groups": 3}, "groups must divide dim"),
        ({"states": 0}, "states must be at least 1"),
        ({"phase": "al"}, "all"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(InputError, match=message):
        Megalodon(16, **settings)
