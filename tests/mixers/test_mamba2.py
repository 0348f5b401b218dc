import math

import pytest
import torch

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.mamba2 import Mamba2, Mamba2State
from lengthwise.models.language_model import LanguageModel
from tests.conversion.theirs import made, mamba_states, take
from tests.stepping import token_by_token


@pytest.fixture(scope="module", params=[1, 2])
def pair(request):
    """transformers' model with random weights, and ours with the same ones."""
    groups = request.param
    theirs = made(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        0.05,
        vocab_size=40,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=3,
        num_heads=4,
        head_dim=16,
        n_groups=groups,
        chunk_size=16,
    )
    layers = f"3*mamba2(state_dim=8, head_dim=16, groups={groups})"
    ours = LanguageModel(vocab_size=40, dim=32, layers=layers, position="none")
    return take(ours, theirs), theirs


@torch.no_grad()
def test_logits_equal_transformers(pair):
    ours, theirs = pair
    tokens = torch.randint(40, (2, 37))
    torch.testing.assert_close(ours(tokens)[0], theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_token_by_token_equals_transformers(pair):
    ours, theirs = pair
    tokens = torch.randint(40, (2, 20))
    torch.testing.assert_close(token_by_token(ours, tokens)[0], theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_state_after_a_prefix_equals_transformers_cache(pair):
    ours, theirs = pair
    tokens = torch.randint(40, (2, 11))
    _, state = ours(tokens)
    for layer, (memory, tail) in zip(state.layers, mamba_states(theirs, tokens), strict=True):
        torch.testing.assert_close(layer.memory, memory.mT, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.tail, tail, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 10, 127, 128, 129, 140])
def test_goes_on_from_any_cut(cut):
    torch.manual_seed(0)
    mixer = Mamba2(12, state_dim=4, head_dim=6, groups=2).double()
    x = torch.randn(2, 140, 12, dtype=torch.float64)
    whole, last = mixer(x)
    first, state = mixer(x[:, :cut])
    second, state = mixer(x[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(state.memory, last.memory)
    torch.testing.assert_close(state.tail, last.tail)


def test_no_document_sees_another():
    torch.manual_seed(0)
    mixer = Mamba2(12, state_dim=4).double()
    x = torch.randn(1, 12, 12, dtype=torch.float64)
    layout = Layout.packed([[5, 7]])
    packed, _ = mixer(x, None, layout)
    torch.testing.assert_close(packed[:, 5:], mixer(x[:, 5:])[0])
    changed = x.clone()
    changed[:, :5] = torch.randn(1, 5, 12, dtype=torch.float64)
    assert torch.equal(mixer(changed, None, layout)[0][:, 5:], packed[:, 5:])


def test_initial_values():
    torch.manual_seed(0)
    mixer = Mamba2(1024, state_dim=4, depth=4)
    assert mixer.heads == 32
    A = mixer.A_log.exp()
    assert 1 <= A.min() < 3
    assert 14 < A.max() <= 16
    assert (mixer.D == 1).all()
    assert (mixer.norm.weight == 1).all()
    step = torch.nn.functional.softplus(mixer.dt_bias)
    assert 1e-3 <= step.min() < 3e-3
    assert 0.03 < step.max() <= 0.1
    assert mixer.out_proj.weight.abs().max() <= 1 / math.sqrt(2048) / 2
    assert all(p.no_weight_decay for p in (mixer.A_log, mixer.D, mixer.dt_bias))


@pytest.mark.parametrize(("dim", "head_dim"), [(8, 16), (12, 24), (48, 48), (256, 64), (512, 64)])
def test_heads_are_as_near_to_64_as_the_width_allows(dim, head_dim):
    assert Mamba2(dim, state_dim=4).head_dim == head_dim


def test_half_precision_keeps_the_state_in_float32():
    mixer = Mamba2(16, state_dim=8).bfloat16()
    y, state = mixer(torch.randn(1, 5, 16, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert state.memory.dtype == state.tail.dtype == torch.float32


def test_under_autocast():
    torch.manual_seed(0)
    mixer, x = Mamba2(16, state_dim=8), torch.randn(1, 30, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x)
    assert state.memory.dtype == torch.float32
    torch.testing.assert_close(y.float(), mixer(x)[0], rtol=0.1, atol=0.03)  # eight bits of mantissa


@pytest.mark.parametrize("length", [1, 2, 100])
def test_the_state_doesnt_grow(length):
    mixer = Mamba2(16, state_dim=4, groups=2, head_dim=8, kernel=3)
    _, state = mixer(torch.randn(1, length, 16))
    assert isinstance(state, Mamba2State)
    assert state.nbytes == mixer.state_nbytes(length) == 4 * (2 * (32 + 2 * 2 * 4) + 4 * 32)


@pytest.mark.parametrize(
    "sizes", [{"state_dim": 0}, {"kernel": 0}, {"groups": 0}, {"head_dim": 0}, {"expansion": 0.01}]
)
def test_impossible_sizes(sizes):
    with pytest.raises(InputError, match="at least 1, got 0"):
        Mamba2(16, **sizes)


def test_heads_and_groups_that_dont_divide():
    with pytest.raises(InputError, match="head_dim must divide expansion \\* dim: got head_dim=5 and 32"):
        Mamba2(16, head_dim=5)
    with pytest.raises(InputError, match="groups must divide the 4 heads of 8, got groups=3"):
        Mamba2(16, head_dim=8, groups=3)
