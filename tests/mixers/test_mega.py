import math

import pytest
import torch
from torch.nn import functional as F

from lengthwise.errors import InputError
from lengthwise.mixers.mega import TCNCA, Mega
from tests.stirred import stir

MIXERS = {
    "mega": lambda **settings: Mega(6, states=3, z_dim=4, value_dim=10, **settings),
    "tcnca": lambda **settings: TCNCA(6, kernel=3, levels=2, z_dim=4, value_dim=10, **settings),
}


def drawn(name, **settings):
    torch.manual_seed(0)
    return stir(MIXERS[name](**settings).double())


def written_out(mixer, x):
    """The equations, one chunk and one query at a time."""
    n = F.layer_norm(x, x.shape[-1:], mixer.norm.weight, mixer.norm.bias)
    m = F.silu(mixer.memory(n)[0])
    v = F.silu(F.linear(n, mixer.v_proj.weight, mixer.v_proj.bias))
    u, z, r, g = F.linear(m, mixer.m_proj.weight, mixer.m_proj.bias).split((6, 4, 10, 6), -1)
    z = F.silu(z)
    q, k = mixer.gamma[0] * z + mixer.beta[0], mixer.gamma[1] * z + mixer.beta[1]
    o = torch.zeros_like(v)
    for i in range(x.shape[1]):
        begin = i // mixer.chunk * mixer.chunk
        end = i + 1 if mixer.causal else min(begin + mixer.chunk, x.shape[1])
        apart = i - torch.arange(begin, end)
        b = mixer.relative[apart if mixer.causal else apart + mixer.chunk - 1]
        logits = (q[:, i, None] * k[:, begin:end]).sum(-1) / math.sqrt(4) + b
        o[:, i] = (logits.softmax(-1)[..., None] * v[:, begin:end]).sum(1)
    h = F.silu(g + F.linear(F.silu(r) * o, mixer.h_proj.weight, mixer.h_proj.bias))
    return x + u.sigmoid() * (h - x)


@torch.no_grad()
@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 5, 7, 20, 23])
def test_equals_the_equations(name, causal, length):
    mixer, x = drawn(name, chunk=5, causal=causal), torch.randn(2, length, 6, dtype=torch.float64)
    torch.testing.assert_close(x + mixer(x)[0], written_out(mixer, x), rtol=0, atol=1e-12)


def test_the_convolutions_and_a_chunk_are_all_that_is_seen():
    mixer = drawn("tcnca", chunk=4)
    assert mixer.receptive_field == 9 + 3
    x = torch.randn(1, 40, 6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(mixer(x)[0][0, 35].sum(), x)  # the last place of its chunk
    assert slope[0, :24].eq(0).all()
    assert slope[0, 24:36].ne(0).any(-1).all()


def test_what_came_before_the_chunk_comes_through_the_memory_alone():
    mixer = drawn("mega", chunk=4)
    x = torch.randn(1, 8, 6, dtype=torch.float64)
    other = torch.cat([-x[:, :4], x[:, 4:]], 1)
    assert (mixer(x)[0] - mixer(other)[0])[:, 4:].abs().max() > 1e-3
    mixer.memory.eta.data.zero_()
    assert torch.equal(mixer(x)[0][:, 4:], mixer(other)[0][:, 4:])


@torch.no_grad()
def test_a_token_decoded_alone_reads_one_row_of_the_biases():
    mixer = drawn("mega", chunk=5)
    whole = mixer.bias(torch.arange(5)[None])[0]
    for place in range(5):
        alone = mixer.bias(torch.tensor([[place]]))
        assert alone.untyped_storage().nbytes() == 5 * 8
        assert torch.equal(alone[0, place, : place + 1], whole[place, : place + 1])


@torch.no_grad()
def test_weights_begin_small_and_biases_at_zero():
    mixer = Mega(256)
    for layer in (mixer.v_proj, mixer.m_proj, mixer.h_proj):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert layer.bias.eq(0).all()
    assert mixer.gamma.std().item() == pytest.approx(0.02, rel=0.2)
    assert mixer.beta.eq(0).all()


@pytest.mark.parametrize("name", MIXERS)
def test_impossible_sizes_are_refused(name):
    with pytest.raises(InputError, match="chunk must be at least 1, got 0"):
        MIXERS[name](chunk=0)
