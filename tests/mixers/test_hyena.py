import math

import pytest
import torch

from lengthwise.caches.history import History
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.hyena import Hyena, HyenaState
from tests.stirred import stir

SIZES = {"max_length": 64, "emb_dim": 5, "filter_order": 16, "w": 10}


def stirred(order=2, dim=6, **sizes):
    """A mixer in float64 whose filters are large enough to matter."""
    torch.manual_seed(0)
    return stir(Hyena(dim, order=order, **{**SIZES, **sizes}).double())


def filters_by_hand(mixer, length):
    """h_t[c], tap by tap and channel by channel."""
    a, (first, *inner, last) = mixer.filter.frequency, mixer.filter.layers
    channels, longest = mixer.filter.channels, mixer.max_length
    rows = []
    for t in range(length):
        share, angle = t / (longest - 1), 2 * math.pi * t / longest
        bands = [1e-4, 1.0]  # two, up to one less than their number
        z = [share, *(math.cos(f * angle) for f in bands), *(-math.sin(f * angle) for f in bands)]
        u = torch.sin(a * first(torch.tensor(z, dtype=torch.float64)))
        for layer in inner:
            u = torch.sin(a * layer(u))
        slowest, fastest = math.log(0.01) / 1.5, math.log(0.01) / 0.3
        delta = [slowest + (fastest - slowest) * c / (channels - 1) for c in range(channels)]
        rows.append((last.weight @ u) * torch.tensor([math.exp(-share * abs(d)) for d in delta], dtype=torch.float64))
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("order", [2, 3, 4])
def test_equals_sums_over_all_earlier_tokens(order):
    mixer, length, dim = stirred(order), 20, 6
    x = torch.randn(2, length, dim, dtype=torch.float64)
    p = torch.nn.functional.pad(mixer.in_proj(x), (0, 0, 2, 0))
    weight = mixer.conv1d.weight[:, 0]
    p = sum(p[:, k : k + length] * weight[:, k] for k in range(3)) + mixer.conv1d.bias
    *gates, v = p.split(dim, -1)
    h = filters_by_hand(mixer, length)
    for o in range(order - 1):
        v = v * gates[order - 1 - o]
        of = torch.arange(dim) * (order - 1) + o
        y = [sum(h[t - s, of] * v[:, s] for s in range(t + 1)) + mixer.beta[of] * v[:, t] for t in range(length)]
        v = torch.stack(y, 1)
    torch.testing.assert_close(mixer(x)[0], mixer.out_proj(v * gates[0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("cut", [0, 1, 2, 10, 19, 20])
def test_goes_on_from_any_cut(order, cut):
    mixer = stirred(order)
    x = torch.randn(2, 20, 6, dtype=torch.float64)
    whole, last = mixer(x)
    first, state = mixer(x[:, :cut])
    second, state = mixer(x[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(state.tail, last.tail)
    for a, b in zip(state.histories, last.histories, strict=True):
        torch.testing.assert_close(a.inputs, b.inputs)


@torch.no_grad()
def test_no_document_sees_another():
    mixer = stirred(3)
    x = torch.randn(2, 14, 6, dtype=torch.float64)
    layout = Layout.packed([[5, 9], [14]])
    packed, state = mixer(x, None, layout)
    torch.testing.assert_close(packed[:1, 5:], mixer(x[:1, 5:])[0])
    changed = x.clone()
    changed[:1, :5] = torch.randn(1, 5, 6, dtype=torch.float64)
    assert torch.equal(mixer(changed, None, layout)[0][:1, 5:], packed[:1, 5:])
    more = torch.randn(2, 1, 6, dtype=torch.float64)
    going_on = Layout(torch.tensor([[9], [14]]), torch.tensor([[1], [0]]))
    torch.testing.assert_close(mixer(more, state, going_on)[0][:1], mixer(more[:1], mixer(x[:1, 5:])[1])[0])


@torch.no_grad()
def test_the_history_forgets_documents_that_have_ended():
    mixer = stirred()
    x = torch.randn(2, 20, 6, dtype=torch.float64)
    _, state = mixer(x, None, Layout.packed([[15, 5], [12, 8]]))
    (history,) = state.histories
    assert history.inputs.shape[1] == 8
    assert (history.inputs[0, :3] == 0).all()


@torch.no_grad()
def test_rows_longer_than_the_filters_hold_documents_that_are_not():
    mixer = stirred(max_length=8)
    x = torch.randn(1, 20, 6, dtype=torch.float64)
    y, state = mixer(x, None, Layout.packed([[8, 5, 7]]))
    torch.testing.assert_close(y[:, 8:13], mixer(x[:, 8:13])[0])
    mixer(x[:, :1], state)
    with pytest.raises(InputError, match="max_length=8 tokens, got 9"):
        mixer(x[:, :2], state)
    with pytest.raises(InputError, match="max_length=8 tokens, got 20"):
        mixer(x)


@torch.no_grad()
def test_the_length_of_the_input_changes_no_tap():
    mixer = stirred()
    torch.testing.assert_close(mixer.filters(5), mixer.filters(64)[:5])
    assert mixer.filters(5).shape == (5, 6)


@torch.no_grad()
def test_kept_filters_follow_every_change_of_a_parameter():
    mixer = stirred()
    assert mixer.filters(9).data_ptr() == mixer.filters(12).data_ptr()
    for number, parameter in enumerate(mixer.filter.parameters()):
        before = mixer.filters(9).clone()
        parameter.data += 0.1  # leaves the parameter's version as it is
        assert torch.equal(mixer.filters(9), mixer.filter(16)[:9])
        assert not torch.equal(mixer.filters(9), before), f"parameter {number}"
    mixer.float()
    assert mixer.filters(9).dtype == torch.float32
    with torch.enable_grad():
        assert mixer.filters(9).requires_grad


@torch.no_grad()
def test_a_decoded_token_copies_no_past():
    mixer = stirred(max_length=200)
    x = torch.randn(2, 200, 6, dtype=torch.float64)
    _, state = mixer(x[:, :100])
    places = set()
    for t in range(100, 130):
        _, state = mixer(x[:, t : t + 1], state)
        places.add(state.histories[0].inputs.data_ptr())
    assert len(places) == 1
    torch.testing.assert_close(state.histories[0].inputs, mixer(x[:, :130])[1].histories[0].inputs)


def test_initial_values():
    torch.manual_seed(0)
    mixer = Hyena(256, order=3, depth=4)
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert mixer.out_proj.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert mixer.beta.std().item() == pytest.approx(1, rel=0.1)
    for layer in mixer.filter.layers:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.bias is None or (layer.bias == 0).all()
    assert (mixer.filter.frequency == 14).all()
    assert all(p.no_weight_decay for p in mixer.filter.parameters())
    window = mixer.filter.window(mixer.max_length)
    assert window[-1, 0].item() == pytest.approx(0.01 ** (1 / 1.5))
    assert window[-1, -1].item() == pytest.approx(0.01 ** (1 / 0.3))


def test_the_windows_floor():
    assert Hyena(4, **SIZES, shift=0.05).filter.window(64).min() > 0.05


def test_half_precision_and_autocast():
    torch.manual_seed(0)
    mixer, x = Hyena(16, **SIZES), torch.randn(1, 30, 16)
    expected = mixer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert mixer.filters(5).dtype == torch.float32
        y, _ = mixer(x)
    assert y.dtype == torch.bfloat16
    half, state = mixer.bfloat16()(x.bfloat16())
    assert state.tail.dtype == torch.float32
    for found in (y, half):
        assert ((found.float() - expected).norm() / expected.norm()).item() < 0.02  # a few roundings of 2⁻⁸


@pytest.mark.parametrize("order", [2, 4])
def test_the_state_grows_with_the_length(order):
    mixer = Hyena(16, order=order, **SIZES)
    _, state = mixer(torch.randn(1, 10, 16))
    assert isinstance(state, HyenaState)
    assert isinstance(state.histories[0], History)
    assert state.nbytes == mixer.state_nbytes(10) == 4 * 16 * ((order - 1) * 10 + (order + 1) * 2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"order": 1}, "order must be at least 2, got 1"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"filter_order": 0}, "filter_order must be at least 1, got 0"),
        ({"emb_dim": 4}, "emb_dim must be odd and at least 3, got 4"),
        ({"emb_dim": 1}, "emb_dim must be odd and at least 3, got 1"),
    ],
)
def test_impossible_sizes(sizes, message):
    with pytest.raises(InputError, match=message):
        Hyena(16, **sizes)
