import math

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.mixers.moving_average import ComplexEMA
from lengthwise.ops.long_convolution import long_convolution


def complex_average(dim=6, states=4, phase="kept"):
    """In float64, with an imaginary part in γ, which begins without one."""
    torch.manual_seed(0)
    mixer = ComplexEMA(dim, states=states, phase=phase).double()
    with torch.no_grad():
        mixer.gamma.normal_()
    return mixer


def numbers(mixer):
    """p, q and γ / √N as complex numbers, and what the phase does to the input."""
    p, states = mixer.alpha.sigmoid(), mixer.alpha.shape[1]
    turn = mixer.theta.sigmoid() * 2 * math.pi / states * torch.arange(1, states + 1, dtype=torch.float64)
    q = (1 - p * mixer.delta.sigmoid()) * torch.exp(1j * turn)
    gamma = torch.complex(mixer.gamma[..., 0], mixer.gamma[..., 1]) / math.sqrt(states)
    return p * torch.exp(1j * turn) if mixer.phase == "all" else p.to(q.dtype), q, gamma


@torch.no_grad()
@pytest.mark.parametrize("phase", ["kept", "all"])
def test_the_complex_average_is_its_recurrence(phase):
    mixer, x = complex_average(phase=phase), torch.randn(2, 40, 6, dtype=torch.float64)
    y, _ = mixer(x)
    p, q, gamma = numbers(mixer)
    h = torch.zeros(2, 6, 4, dtype=torch.complex128)
    for t in range(40):
        h = q * h + p * x[:, t, :, None]
        expected = (gamma * h).sum(-1).real + mixer.omega * x[:, t]
        torch.testing.assert_close(y[:, t], expected, rtol=1e-8, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("phase", ["kept", "all"])
def test_the_complex_average_is_a_convolution(phase):
    """K_l = Re Σ g p q^l, and what was before comes in with Re Σ g q^(t+1) h."""
    mixer, x = complex_average(phase=phase), torch.randn(2, 70, 6, dtype=torch.float64)
    _, state = mixer(x[:, :30])
    y, _ = mixer(x[:, 30:], state)
    p, q, gamma = numbers(mixer)
    powers = q ** torch.arange(41)[:, None, None]
    kernel = (gamma * p * powers[:40]).sum(-1).real
    h = torch.zeros(2, 6, 4, dtype=torch.complex128)
    for t in range(30):
        h = q * h + p * x[:, t, :, None]
    carried = (gamma * powers[1:] * h[:, None]).sum(-1).real
    expected = long_convolution(x[:, 30:], kernel) + carried + mixer.omega * x[:, 30:]
    torch.testing.assert_close(y, expected, rtol=1e-8, atol=1e-8)


def test_initial_values_of_the_complex_average():
    torch.manual_seed(0)
    mixer = ComplexEMA(512, states=16)
    assert mixer.alpha.std().item() == pytest.approx(0.2, rel=0.05)
    assert mixer.delta.std().item() == pytest.approx(0.2, rel=0.05)
    spread = mixer.theta[:, 0].sigmoid().sort().values
    torch.testing.assert_close(spread[[0, -1]], torch.tensor([1 / 512, 512 ** (-1 / 512)]), rtol=1e-4, atol=0)
    ratio = spread[1:] / spread[:-1]
    torch.testing.assert_close(ratio, ratio[0].expand(511), rtol=1e-3, atol=0)  # even in the logarithm
    assert not torch.equal(mixer.theta[:, 0].sort().values, mixer.theta[:, 0].flip(0))
    assert mixer.gamma[..., 0].std().item() == pytest.approx(1, rel=0.05)
    assert (mixer.gamma[..., 1] == 0).all()
    assert mixer.omega.std().item() == pytest.approx(0.25, rel=0.1)
    assert mixer.omega.abs().max() <= 1
    assert all(p.no_weight_decay for p in mixer.parameters())


def test_a_turn_alone_lasts_for_ever():
    """Rates close to 1 in absolute value must not be rounded away."""
    mixer = complex_average(dim=2, states=1)
    with torch.no_grad():
        mixer.delta.fill_(-16.0)  # |q| = 1 − σ(α) 1e-7
    x = torch.zeros(1, 10_000, 2, dtype=torch.float64)
    x[:, 0] = 1
    _, state = mixer(x)
    _, q, _ = numbers(mixer)
    expected = torch.view_as_real(q**9_999)[None]
    torch.testing.assert_close(state.averages, expected, rtol=0, atol=1e-9)
    assert (torch.view_as_complex(state.averages).abs() > 0.999).all()


def test_half_precision_keeps_the_complex_averages_in_float32():
    mixer = ComplexEMA(6, states=4).bfloat16()
    y, state = mixer(torch.randn(1, 5, 6, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert state.averages.dtype == torch.float32
    assert state.nbytes == mixer.state_nbytes(5) == 2 * 4 * 6 * 4


@pytest.mark.parametrize(
    ("settings", "message"), [({"states": 0}, "states must be at least 1, got 0"), ({"phase": "kep"}, "kept")]
)
def test_impossible_settings_of_the_complex_average(settings, message):
    with pytest.raises(InputError, match=message):
        ComplexEMA(8, **settings)
