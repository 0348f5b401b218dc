import math

import pytest
import torch

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.mamba import Mamba, MambaState
from lengthwise.models.language_model import LanguageModel
from tests.conversion.theirs import made, mamba_states, take


@pytest.fixture(scope="module")
def pair():
    """transformers' model with random weights, and ours with the same ones."""
    sizes = {"vocab_size": 40, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3}
    theirs = made("MambaForCausalLM", "MambaConfig", 0.01, **sizes)
    ours = LanguageModel(vocab_size=40, dim=32, layers="3*mamba(state_dim=8)", position="none", tie=True)
    return take(ours, theirs), theirs


def test_logits_equal_transformers(pair):
    ours, theirs = pair
    tokens = torch.randint(40, (2, 37))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens)[0], theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_state_after_a_prefix_equals_transformers_cache(pair):
    ours, theirs = pair
    tokens = torch.randint(40, (2, 11))
    with torch.no_grad():
        _, state = ours(tokens)
        kept = mamba_states(theirs, tokens)
    for layer, (h, tail) in zip(state.layers, kept, strict=True):
        torch.testing.assert_close(layer.h, h, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.tail, tail, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 10, 19, 20])
def test_goes_on_from_any_cut(cut):
    torch.manual_seed(0)
    mixer = Mamba(12, state_dim=4).double()
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    whole, last = mixer(x)
    first, state = mixer(x[:, :cut])
    second, state = mixer(x[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(state.h, last.h)
    torch.testing.assert_close(state.tail, last.tail)


def test_no_document_sees_another():
    torch.manual_seed(0)
    mixer = Mamba(12, state_dim=4).double()
    x = torch.randn(1, 12, 12, dtype=torch.float64)
    layout = Layout.packed([[5, 7]])
    packed, _ = mixer(x, None, layout)
    torch.testing.assert_close(packed[:, 5:], mixer(x[:, 5:])[0])
    changed = x.clone()
    changed[:, :5] = torch.randn(1, 5, 12, dtype=torch.float64)
    assert torch.equal(mixer(changed, None, layout)[0][:, 5:], packed[:, 5:])


def test_initial_values():
    torch.manual_seed(0)
    mixer = Mamba(64, depth=4)
    torch.testing.assert_close(-mixer.A_log.exp()[0], -torch.arange(1.0, 17))
    assert (mixer.D == 1).all()
    step = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert 1e-3 <= step.min() < 2e-3
    assert 0.05 < step.max() <= 0.1
    assert mixer.dt_proj.weight.abs().max() <= 0.5  # rank 4
    assert mixer.out_proj.weight.abs().max() <= 1 / math.sqrt(128) / 2
    assert mixer.A_log.no_weight_decay
    assert mixer.D.no_weight_decay


def test_half_precision_keeps_the_state_in_float32():
    mixer = Mamba(16).bfloat16()
    y, state = mixer(torch.randn(1, 5, 16, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert state.h.dtype == state.tail.dtype == torch.float32


def test_under_autocast():
    torch.manual_seed(0)
    mixer, x = Mamba(16), torch.randn(1, 30, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x)
    assert state.h.dtype == torch.float32
    torch.testing.assert_close(y.float(), mixer(x)[0], rtol=0.1, atol=0.02)  # eight bits of mantissa


@pytest.mark.parametrize("length", [1, 2, 100])
def test_the_state_doesnt_grow(length):
    mixer = Mamba(16, state_dim=4, kernel=3)
    _, state = mixer(torch.randn(1, length, 16))
    assert isinstance(state, MambaState)
    assert state.nbytes == mixer.state_nbytes(length) == 4 * 32 * (2 + 4)


@pytest.mark.parametrize("sizes", [{"state_dim": 0}, {"kernel": 0}, {"dt_rank": 0}, {"expansion": 0.01}])
def test_impossible_sizes(sizes):
    with pytest.raises(InputError, match="at least 1, got 0"):
        Mamba(16, **sizes)
