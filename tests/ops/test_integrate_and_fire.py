"""Spiking neurons: the kernels against the definition, and the definition against spikingjelly."""

import math

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.ops.integrate_and_fire import integrate_and_fire, integrate_and_fire_reference, spike


def inputs(length, batch=2, channels=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(batch, length, channels, generator=generator, dtype=torch.float64)
    membrane = torch.rand(batch, channels, generator=generator, dtype=torch.float64)
    starts = torch.rand(batch, length, generator=generator) < 0.2
    return x.to(dtype), membrane.to(dtype), starts


def results(x, membrane, starts, backend, tau=2.0):
    leaves = [x.clone().requires_grad_(), membrane.clone().requires_grad_()]
    spikes, last = integrate_and_fire(leaves[0], tau, leaves[1], starts, backend=backend)
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in (spikes, last))
    return [spikes, last, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("length", [0, 1, 2, 60])
@pytest.mark.parametrize("tau", [1.0, 1.7, 2.0])
def test_kernels_equal_the_definition_in_value_and_gradient(length, tau):
    x, membrane, starts = inputs(length, channels=300)
    for borders in (None, starts):
        for a, b in zip(*(results(x, membrane, borders, form, tau) for form in ("numba", "reference")), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_spikes_and_gradients_are_those_of_spikingjelly():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")
    x, _, _ = inputs(50, dtype=torch.float32)
    theirs = neuron.LIFNode(
        tau=2.0, decay_input=True, v_threshold=1.0, v_reset=0.0, surrogate_function=surrogate.ATan(2.0), step_mode="m"
    )
    weight = torch.randn(x.shape)
    x.requires_grad_()
    expected = theirs(x.transpose(0, 1)).transpose(0, 1)
    assert 0.05 < expected.mean() < 0.5
    wanted = torch.autograd.grad((expected * weight).sum(), x)[0]
    for form in ("numba", "reference"):
        spikes, membrane = integrate_and_fire(x, backend=form)
        assert torch.equal(spikes, expected)
        torch.testing.assert_close(membrane, theirs.v)
        torch.testing.assert_close(torch.autograd.grad((spikes * weight).sum(), x)[0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_constant_inputs(backend):
    below, _ = integrate_and_fire(torch.full((1, 100, 1), 0.999), backend=backend)
    assert below.sum() == 0  # the charge is x (1 - 2^-t)
    at_once, _ = integrate_and_fire(torch.full((1, 100, 1), 2.0), backend=backend)
    assert at_once.sum() == 100  # 1 at the first token, and exactly the threshold fires


@pytest.mark.parametrize("cut", [0, 1, 7, 20])
def test_goes_on_from_any_cut_and_a_start_empties_the_membrane(cut):
    x, membrane, starts = inputs(20)
    whole, last = integrate_and_fire(x, 2.0, membrane, starts)
    first, middle = integrate_and_fire(x[:, :cut], 2.0, membrane, starts[:, :cut])
    second, after = integrate_and_fire(x[:, cut:], 2.0, middle, starts[:, cut:])
    assert torch.equal(torch.cat([first, second], 1), whole)
    assert torch.equal(after, last)
    starts = torch.ones_like(starts)
    alone, _ = integrate_and_fire(x, 2.0, membrane, starts)
    assert torch.equal(alone, (x >= 2).double())  # what one token charges by itself is x / 2


def test_the_derivative_of_a_spike_is_that_of_an_arctangent():
    v = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    s = spike(v)
    assert s.tolist() == [0, 1, 1]
    slopes = torch.autograd.grad(s.sum(), v)[0]
    expected = [1 / (1 + (math.pi * x) ** 2) for x in (-1.0, 0.0, 0.5)]
    torch.testing.assert_close(slopes, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("first", [0.6, 2.4])
def test_the_gradient_goes_through_leak_and_reset(backend, first):
    """By the chain rule, of the second spike in the first input, which fired or didn't."""
    x = torch.tensor([[[first], [1.3]]], dtype=torch.float64, requires_grad=True)
    spikes, membrane = integrate_and_fire(x, backend=backend)
    slope, by_membrane = (
        torch.autograd.grad(t.sum(), x, retain_graph=True)[0][0, 0, 0] for t in (spikes[:, 1], membrane)
    )
    one = first / 2
    fired, kept = float(one >= 1), 0.0 if one >= 1 else one
    two = kept + (1.3 - kept) / 2
    derivative = [1 / (1 + (math.pi * (h - 1)) ** 2) for h in (one, two)]
    to_membrane = (1 - fired - one * derivative[0]) / 2  # of U_1 in x_1
    assert float(slope) == pytest.approx(derivative[1] * to_membrane / 2)
    assert float(by_membrane) == pytest.approx((1 - float(two >= 1) - two * derivative[1]) * to_membrane / 2)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_what_is_not_a_number_is_not_hidden(backend):
    x = torch.tensor([[[0.0], [math.nan], [3.0]]])
    spikes, membrane = integrate_and_fire(x, backend=backend)
    assert spikes.isnan().flatten().tolist() == [False, True, True]
    assert membrane.isnan().all()


def test_half_precision_keeps_the_membrane_in_float32():
    x, _, _ = inputs(30, dtype=torch.bfloat16)
    spikes, membrane = integrate_and_fire(x)
    assert (spikes.dtype, membrane.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(spikes.float(), integrate_and_fire_reference(x.float())[0])


def test_the_op_is_what_it_tells_the_compiler():
    x, membrane, starts = inputs(9, dtype=torch.float32)
    given = (x.requires_grad_(), membrane.requires_grad_(), starts, 2.0)
    assert set(torch.library.opcheck(torch.ops.lengthwise.integrate_and_fire, given).values()) == {"SUCCESS"}


def test_a_leak_of_less_than_a_token_is_an_error():
    with pytest.raises(InputError, match=r"tau must be at least 1, got 0\.5"):
        integrate_and_fire(inputs(3)[0], 0.5)
