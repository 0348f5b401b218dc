"""RRWKV against its double sums, against RWKV-4 without mediums, and what its mediums may change."""

import pytest
import torch

from lengthwise.channels.rrwkv import RRWKVChannels
from lengthwise.contract import Layout, state_tensors
from lengthwise.errors import InputError
from lengthwise.mixers.rrwkv import RRWKV
from lengthwise.models.language_model import LanguageModel
from tests.stepping import in_pieces
from tests.stirred import stir

DIM, INTERVAL = 6, 4


def stirred(module, strength=0.3):
    """With random weights: the branches begin silent, and mediums unread."""
    torch.manual_seed(1)
    stir(module, strength)
    if isinstance(module, RRWKV):
        module.medium_bonus.data += 8
    return module.double()


def mediums(module, x):
    """m_j of every finished interval of one row, one after the other."""
    rho, m, found = torch.sigmoid(module.keep), torch.zeros(DIM, dtype=x.dtype), []
    for j in range(len(x) // module.interval):
        m = module.squeeze.weight @ x[j * module.interval : (j + 1) * module.interval].mean(0) + rho * m
        found.append(m)
    return found


def mixed(module, names, x, t, read):
    before = x[t - 1] if t else torch.zeros(DIM, dtype=x.dtype)
    for name, nu in zip(names, module.mediums.shares, strict=True):
        mu = getattr(module, f"time_mix_{name}")
        yield mu * x[t] + (1 - mu) * before + nu * read


def time_mix(module, x):
    """The formulas, by their sums over all tokens and mediums before each token of one row."""
    found, ks, vs, ys = mediums(module.mediums, x), [], [], []
    w, slow, u = module.time_decay.exp(), module.medium_decay.exp(), module.time_first
    for t in range(len(x)):
        behind = t // INTERVAL
        read = found[behind - 1] if behind else torch.zeros(DIM, dtype=x.dtype)
        a, b, c = mixed(module, ("key", "value", "receptance"), x, t, read)
        k, v, r = module.key.weight @ a, module.value.weight @ b, module.receptance.weight @ c
        terms = [(ks[i] - (t - 1 - i) * w, vs[i]) for i in range(t)] + [(u + k, v)]
        for j in range(behind):
            kappa = module.key.weight @ found[j] + module.medium_bonus
            terms.append((kappa - (behind - 1 - j) * slow, module.value.weight @ found[j]))
        weights = torch.stack([weight for weight, _ in terms]).softmax(0)
        average = (weights * torch.stack([value for _, value in terms])).sum(0)
        ys.append(module.output.weight @ (torch.sigmoid(r) * average))
        ks.append(k)
        vs.append(v)
    return torch.stack(ys)


def channel_mix(module, x):
    """The formulas, for each token of one row."""
    found, ys = mediums(module.mediums, x), []
    for t in range(len(x)):
        read = found[t // INTERVAL - 1] if t >= INTERVAL else torch.zeros(DIM, dtype=x.dtype)
        a, c = mixed(module, ("key", "receptance"), x, t, read)
        hidden = torch.relu(module.key.weight @ a) ** 2
        ys.append(torch.sigmoid(module.receptance.weight @ c) * (module.value.weight @ hidden))
    return torch.stack(ys)


KINDS = [pytest.param(RRWKV, time_mix, id="time"), pytest.param(RRWKVChannels, channel_mix, id="channels")]


@pytest.mark.parametrize(("kind", "definition"), KINDS)
@pytest.mark.parametrize("length", [1, 3, 4, 5, 23])
def test_value_and_gradients_are_those_of_the_sums(kind, definition, length):
    module = stirred(kind(DIM, interval=INTERVAL, layer=1, layers=2))
    x = torch.randn(2, length, DIM, dtype=torch.float64, requires_grad=True)
    y, _ = module(x)
    expected = torch.stack([definition(module, row) for row in x])
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    slope = torch.randn_like(y)
    by = [x, *module.parameters()]
    found = torch.autograd.grad(y, by, slope, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(expected, by, slope, allow_unused=True, materialize_grads=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "definition"), KINDS)
@pytest.mark.parametrize("cuts", [(0,), (1, 2), (4, 8), (5, 11), tuple(range(1, 24))])
def test_the_phase_of_intervals_goes_on_after_any_cut(kind, definition, cuts):
    module = stirred(kind(DIM, interval=INTERVAL))
    layout = Layout.packed([[24], [6, 13, 5], [3, 4, 1, 16]])
    x = torch.randn(3, 24, DIM, dtype=torch.float64)
    y, state = in_pieces(module, x, cuts, layout=layout)
    whole, last = module(x, None, layout)
    torch.testing.assert_close(y, whole, rtol=1e-10, atol=1e-10)
    for a, b in zip(state_tensors(state), state_tensors(last), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    expected = [
        torch.cat([definition(module, part) for part in x[r].split(lengths)])
        for r, lengths in enumerate([[24], [6, 13, 5], [3, 4, 1, 16]])
    ]
    torch.testing.assert_close(whole, torch.stack(expected), rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("token", [0, 3, 5])
def test_a_medium_changes_no_output_before_the_end_of_its_interval(token):
    """Without the token shift and the tokens' average beyond the present one, only mediums carry anything on."""
    module = stirred(RRWKV(DIM, interval=INTERVAL))
    for share in (module.time_mix_key, module.time_mix_value, module.time_mix_receptance):
        share.fill_(1.0)
    module.time_first.fill_(200.0)
    module.medium_bonus.fill_(200.0)
    x = torch.randn(1, 14, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[:, token] += 1
    different = (module(x)[0] != module(changed)[0]).any(-1)[0].nonzero().flatten().tolist()
    assert different == [token, *range((token // INTERVAL + 1) * INTERVAL, 14)]


def models(**settings):
    """RWKV-4, and RRWKV with the same weights."""
    torch.manual_seed(0)
    plain = LanguageModel(17, 16, "layernorm + 2*(rwkv + rwkv_channels)", "none", "layernorm")
    layers = "layernorm + 2*(rrwkv(interval=4) + rrwkv_channels(interval=4))"
    retrospecting = LanguageModel(17, 16, layers, "none", "layernorm")
    stirred(plain)
    missing, extra = retrospecting.load_state_dict(plain.state_dict(), strict=False)
    assert extra == []
    assert all("medium" in name for name in missing)
    return plain, retrospecting.double()


@torch.no_grad()
def test_without_mediums_it_is_rwkv():
    plain, model = models()
    tokens = torch.randint(0, 17, (2, 30))
    assert not torch.allclose(model(tokens)[0], plain(tokens)[0], atol=1e-5)  # mediums weigh e^-8 at first
    for module in model.modules():
        if isinstance(module, RRWKV):
            module.medium_bonus.fill_(-1e9)
    torch.testing.assert_close(model(tokens)[0], plain(tokens)[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.float()(tokens)[0], plain.float()(tokens)[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_no_overflow_at_large_keys():
    module = stirred(RRWKV(DIM, interval=INTERVAL)).float()
    module.key.weight.mul_(1000)
    y, state = module(10 * torch.randn(2, 40, DIM))
    assert y.isfinite().all()
    assert all(t.isfinite().all() for t in state_tensors(state))


def test_initial_values():
    module = RRWKV(32, layer=1, layers=3)
    assert module.mediums.interval == 32
    assert all(not share.any() for share in module.mediums.shares)
    assert not module.mediums.keep.any()
    assert (module.medium_bonus == -8).all()
    assert torch.equal(module.medium_decay, module.time_decay)
    weight = module.mediums.squeeze.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(32), rtol=0, atol=1e-5)
    assert module.medium_decay.no_weight_decay


def test_the_state_has_twelve_vectors():
    """And a count for each of the two halves."""
    assert RRWKV(32).state_nbytes(1000) + RRWKVChannels(32).state_nbytes(1000) == 12 * 32 * 4 + 2 * 8


def test_an_interval_below_1_is_an_error():
    for kind in (RRWKV, RRWKVChannels):
        with pytest.raises(InputError, match="interval must be at least 1 token, got 0"):
            kind(8, interval=0)
