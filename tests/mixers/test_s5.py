import math

import numpy as np
import pytest
import torch

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.hippo import legs_normal_part
from lengthwise.mixers.s5 import S5, S5State, exponential_quotient
from lengthwise.models.build import build

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def step_by_step(mixer, u, s, resets):
    """The formulas of the paper in complex128, one token at a time; the map B̄ with a division by Λ."""
    rates = mixer.Lambda_re.double() + 1j * mixer.Lambda_im.double()
    B, C = (torch.view_as_complex(p.detach().double().contiguous()) for p in (mixer.B, mixer.C))
    step = mixer.log_step.double().exp()
    decay = torch.exp(rates * step)
    B = ((decay - 1) / rates)[:, None] * B
    ys = []
    for t in range(u.shape[1]):
        s = torch.where(resets[:, t, None], 0, s)
        s = decay * s + u[:, t].to(B.dtype) @ B.T
        ys.append(2 * (s @ C.T).real + mixer.D.double() * u[:, t])
    return torch.stack(ys, 1), s


def example(batch=3, length=30, dim=6, state_dim=10, seed=0):
    torch.manual_seed(seed)
    mixer = S5(dim, state_dim=state_dim).double()
    u = torch.randn(batch, length, dim, dtype=torch.float64)
    s = torch.randn(batch, state_dim // 2, dtype=torch.complex128)
    return mixer, u, s, torch.rand(batch, length) < 0.2


@torch.no_grad()
def test_the_scan_is_the_loop_over_steps_that_zeroes_the_state():
    mixer, u, s, resets = example()
    assert resets.any()
    y, last = mixer.recurrence(u, s, resets)
    expected, after = step_by_step(mixer, u, s, resets)
    torch.testing.assert_close(y, expected, **EXACT)
    torch.testing.assert_close(last, after, **EXACT)


@torch.no_grad()
def test_in_single_precision_the_scan_is_the_loop_as_closely():
    mixer, u, s, resets = example()
    expected, after = step_by_step(mixer, u, s, resets)
    y, last = mixer.float().recurrence(u.float(), s.to(torch.complex64), resets)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.to(s.dtype), after, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_where_every_token_resets_there_is_no_memory():
    mixer, u, s, _ = example()
    y, _ = mixer.recurrence(u, s, torch.ones(u.shape[:2], dtype=torch.bool))
    _, B = mixer.discretised(torch.float64)
    through = torch.view_as_complex(mixer.C.contiguous()) @ B
    torch.testing.assert_close(y, 2 * u @ through.real.T + mixer.D * u, **EXACT)


@torch.no_grad()
def test_zero_order_hold_is_the_integral_of_the_state_over_a_step():
    """B̄ = ∫_0^Δ exp(Λ t) B dt, by Gauss-Legendre quadrature, which is exact to 1e-14 on so smooth a function."""
    mixer, *_ = example(state_dim=8)
    decay, held = mixer.discretised(torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    for p in range(mixer.states):
        step, rate = mixer.log_step[p].exp().item(), complex(mixer.Lambda_re[p], mixer.Lambda_im[p])
        integral = sum(w * np.exp(rate * step * (x + 1) / 2) for x, w in zip(nodes, weights, strict=True)) * step / 2
        expected = integral * torch.view_as_complex(mixer.B[p].contiguous())
        torch.testing.assert_close(held[p], expected, rtol=1e-12, atol=1e-14)
        assert decay[p].item() == pytest.approx(np.exp(rate * step), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_quotient_keeps_its_digits_near_zero(dtype):
    """Against its power series, of which 30 terms suffice up to |z| = 1."""
    size = torch.logspace(-30, 0, 200, dtype=torch.float64)
    z = torch.polar(size, torch.linspace(0, 40, 200, dtype=torch.float64))
    z = torch.cat([torch.zeros(1, dtype=z.dtype), z]).to(dtype)
    wide = z.to(torch.complex128)
    series = sum(wide**n / float(math.factorial(n + 1)) for n in range(30))
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(exponential_quotient(z).to(series.dtype), series, rtol=tolerance, atol=0)


def test_the_quotient_has_a_gradient_everywhere():
    z = torch.tensor([0, 1e-7, 1e-3j, 0.1 + 0.2j, -3 + 40j], dtype=torch.complex128, requires_grad=True)
    (slope,) = torch.autograd.grad(exponential_quotient(z).real.sum(), z)
    z = z.detach()
    series = sum(n * z ** (n - 1) / float(math.factorial(n + 1)) for n in range(1, 30))
    exact = torch.where(z.abs() < 1, series, (z.exp() * (z - 1) + 1) / z**2)
    torch.testing.assert_close(slope, exact.conj(), rtol=1e-9, atol=0)  # 2e-16 over |z| = 1e-7 is 2e-9 of 1/2


def test_a_rate_of_zero_can_be_trained():
    mixer, u, *_ = example()
    with torch.no_grad():
        mixer.Lambda_re[0] = mixer.Lambda_im[0] = 0
    y, _ = mixer(u)
    for slope in torch.autograd.grad(y.sum(), list(mixer.parameters())):
        assert slope.isfinite().all()


def test_the_real_part_is_kept_below_its_limit():
    torch.manual_seed(0)
    free, limited = S5(4), S5(4, largest_real=-1e-4)
    limited.load_state_dict(free.state_dict())
    u = torch.randn(1, 50, 4)
    assert torch.equal(limited(u)[0], free(u)[0])  # begins below the limit
    for mixer in (free, limited):
        mixer.Lambda_re.data.fill_(0.5)
    growing, bounded = (mixer.discretised(torch.float32)[0].abs() for mixer in (free, limited))
    assert (growing > 1).all()
    torch.testing.assert_close(bounded, torch.exp(-1e-4 * limited.log_step.exp()))


def test_conjugate_pairs_are_kept_by_half():
    """The whole spectrum, without the factor of 2, gives what one half with it gives."""
    torch.manual_seed(0)
    dim, size, length = 3, 12, 20
    eigenvalues, V = legs_normal_part(size)
    B_0, C_0 = torch.randn(size, dim, dtype=torch.float64), torch.randn(dim, size, dtype=torch.float64)
    mixer = S5(dim, state_dim=size).double()
    half = slice(0, size // 2)
    with torch.no_grad():
        mixer.Lambda_re.copy_(eigenvalues.real[half])
        mixer.Lambda_im.copy_(eigenvalues.imag[half])
        mixer.B.copy_(torch.view_as_real(V[:, half].mH @ B_0.to(V.dtype)))
        mixer.C.copy_(torch.view_as_real(C_0.to(V.dtype) @ V[:, half]))
        mixer.log_step.fill_(math.log(0.05))
        u = torch.randn(1, length, dim, dtype=torch.float64)
        y, _ = mixer.recurrence(u)
    S = (V @ torch.diag(eigenvalues) @ V.mH).real
    decay = torch.matrix_exp(0.05 * S)
    held = torch.linalg.solve(S, (decay - torch.eye(size)) @ B_0)
    s, expected = torch.zeros(size, dtype=torch.float64), []
    for u_t in u[0]:
        s = decay @ s + held @ u_t
        expected.append(C_0 @ s + mixer.D.detach() * u_t)
    torch.testing.assert_close(y[0], torch.stack(expected), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_layer_gates_what_it_reads():
    mixer, u, *_ = example()
    y, _ = mixer.recurrence(u)
    g = torch.nn.functional.gelu(y, approximate="tanh")
    value, gate = torch.nn.functional.linear(g, mixer.out_proj.weight, mixer.out_proj.bias).split(6, -1)
    torch.testing.assert_close(mixer(u)[0], value * torch.sigmoid(gate))


def test_initial_values():
    torch.manual_seed(0)
    mixer = S5(96, state_dim=256)
    eigenvalues, _ = legs_normal_part(256)
    assert (mixer.Lambda_re == -0.5).all()
    torch.testing.assert_close(mixer.Lambda_im, eigenvalues.imag[:128].float())
    assert (mixer.Lambda_im < 0).all()
    assert mixer.B.shape == (128, 96, 2)
    assert mixer.C.shape == (96, 128, 2)
    # V is unitary, so half of it keeps half of a real vector's square, and of a complex one's.
    assert mixer.B.square().sum().item() == pytest.approx(96 / 2, rel=0.03)
    assert mixer.C.square().sum().item() == pytest.approx(2 / 2, rel=0.03)
    assert mixer.D.std().item() == pytest.approx(1, abs=0.2)
    assert mixer.log_step.exp().min() >= 1e-3
    assert mixer.log_step.exp().max() <= 1e-1
    assert mixer.log_step.mean().item() == pytest.approx(math.log(1e-2), abs=0.4)
    assert mixer.out_proj.weight.std().item() == pytest.approx(96**-0.5, rel=0.03)
    assert mixer.out_proj.weight.abs().max().item() <= 2 / 0.8796 * 96**-0.5
    assert (mixer.out_proj.bias == 0).all()
    undecayed = {name for name, p in mixer.named_parameters() if getattr(p, "no_weight_decay", False)}
    assert undecayed == {"Lambda_re", "Lambda_im", "B", "D", "log_step"}


@pytest.mark.parametrize(("dim", "states"), [(8, 4), (7, 4), (1, 1)])
def test_the_state_has_as_many_numbers_as_a_token_unless_told(dim, states):
    assert S5(dim).states == states


@pytest.mark.parametrize("length", [0, 1, 100])
def test_the_state_doesnt_grow(length):
    mixer = S5(8, state_dim=12)
    _, state = mixer(torch.randn(1, length, 8))
    assert isinstance(state, S5State)
    assert state.nbytes == mixer.state_nbytes(length) == 6 * 8


def test_rollouts_whose_episodes_begin_anywhere():
    """The first row goes on with the state, the second begins an episode at once, the third never does."""
    torch.manual_seed(0)
    mixer = S5(5).double()
    u, earlier = torch.randn(3, 9, 5, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    begins = torch.zeros(3, 9, dtype=torch.bool)
    begins[0, [3, 4]] = begins[1, 0] = True
    _, state = mixer(earlier)
    y, last = mixer(u, state, Layout.begun(begins))

    def alone(row, begin, end, before=None):
        return mixer(u[row : row + 1, begin:end], before and before.select(torch.tensor([row])))

    episodes = ((0, 0, 3, state), (0, 3, 4, None), (0, 4, 9, None), (1, 0, 9, None), (2, 0, 9, state))
    for row, begin, end, before in episodes:
        expected, after = alone(row, begin, end, before)
        torch.testing.assert_close(y[row : row + 1, begin:end], expected)
    torch.testing.assert_close(last.s[2:], after.s)


def test_steps_since_an_episode_began_are_positions():
    """Counted by the environment, they and the numbers of the episodes give the same layout as the flags."""
    begins = torch.tensor([[False, True, False, False, True]])
    steps = torch.tensor([[7, 0, 1, 2, 0]])
    given, ours = Layout(steps, begins.long().cumsum(1)), Layout.begun(begins, seen=torch.tensor([7]))
    assert torch.equal(given.starts, begins)
    assert torch.equal(ours.positions, steps)
    assert torch.equal(ours.documents, given.documents)


def test_half_precision_keeps_the_state_out_of_it():
    mixer = S5(16).bfloat16()
    y, state = mixer(torch.randn(1, 5, 16, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert state.s.dtype == torch.float32
    _, state = mixer(torch.randn(1, 5, 16, dtype=torch.bfloat16), state.to(dtype=torch.bfloat16))
    assert state.s.dtype == torch.float32


def test_under_autocast():
    torch.manual_seed(0)
    mixer, x = S5(16), torch.randn(1, 30, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x)
    assert state.s.dtype == torch.float32
    torch.testing.assert_close(y.float(), mixer(x)[0], rtol=0.1, atol=0.02)  # eight bits of mantissa


def test_an_expression_can_name_it():
    mixer = build("s5(state_dim=6, largest_real=-1e-4)", dim=4)
    assert isinstance(mixer.part if hasattr(mixer, "part") else mixer, S5)


@pytest.mark.parametrize("state_dim", [0, 1, 7, -2])
def test_a_state_of_half_a_pair(state_dim):
    with pytest.raises(InputError, match=f"even and at least 2, got {state_dim}"):
        S5(8, state_dim=state_dim)
