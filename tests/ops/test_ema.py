import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.ops.ema import ema, ema_reference
from lengthwise.ops.long_convolution import long_convolution

FAST = ("numba", "torch")
KINDS = (torch.float64, torch.complex128)
EXACT = {"rtol": 1e-11, "atol": 1e-11}  # float64, sums in another order


def inputs(batch, length, channels, states, kind=torch.complex128, seed=0):
    """x, q with |q| < 1, w, initial."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, dtype=kind):
        return torch.randn(*shape, generator=g, dtype=dtype)

    q = normal(channels, states)
    q = 0.99 * torch.rand(channels, states, generator=g, dtype=torch.float64) * q / q.abs()
    x = normal(batch, length, channels, dtype=torch.float64)
    return [x, q, normal(channels, states), normal(batch, channels, states)]


def value_and_gradients(given, starts, backend):
    given = [v.clone().requires_grad_() for v in given]
    y, final = ema(*given, starts, backend=backend)
    g = torch.Generator().manual_seed(7)
    # Drawn in one precision for all, whose draws would differ, and real where y is.
    kind = torch.complex128 if final.is_complex() else torch.float64
    loss = sum((v * torch.randn(v.shape, generator=g, dtype=kind).to(final.dtype)).sum().real for v in (y, final))
    return [y, final, *torch.autograd.grad(loss, given)]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 70),
    channels=st.integers(1, 40),
    states=st.integers(1, 5),
    kind=st.sampled_from(KINDS),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    backend=st.sampled_from(FAST),
)
def test_fast_forms_equal_the_definition_in_value_and_gradient(batch, length, channels, states, kind, share, backend):
    given = inputs(batch, length, channels, states, kind)
    starts = torch.rand(batch, length, generator=torch.Generator().manual_seed(1)) < share
    expected = value_and_gradients(given, starts, "reference")
    for fast, slow in zip(value_and_gradients(given, starts, backend), expected, strict=True):
        torch.testing.assert_close(fast, slow, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(kind):
    """In complex numbers too, so the convention is PyTorch's."""
    given = [v.requires_grad_() for v in inputs(1, 6, 3, 2, kind)]
    starts = torch.tensor([[False, False, True, False, False, False]])
    for borders in (None, starts):
        assert torch.autograd.gradcheck(lambda *v, borders=borders: ema(*v, borders, backend="numba"), given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 63, 64, 65])
def test_goes_on_from_a_state_at_any_length(kind, backend, length):
    x, q, w, initial = inputs(2, 70, 20, 3, kind)
    whole, final = ema(x, q, w, initial, backend="reference")
    first, h = ema(x[:, :length], q, w, initial, backend=backend)
    second, h = ema(x[:, length:], q, w, h, backend=backend)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **EXACT)
    torch.testing.assert_close(h, final, **EXACT)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_documents_in_a_row_equal_documents_alone(backend):
    x, q, w, initial = inputs(1, 50, 6, 3)
    starts = torch.zeros(1, 50, dtype=torch.bool)
    starts[0, [17, 18, 40]] = True
    packed, final = ema(x, q, w, initial, starts, backend=backend)
    h = initial
    for part in (slice(0, 17), slice(17, 18), slice(18, 40), slice(40, 50)):
        alone, last = ema(x[:, part], q, w, h, backend="reference")
        torch.testing.assert_close(packed[:, part], alone, **EXACT)
        h = None
    torch.testing.assert_close(final, last, **EXACT)


def test_it_is_a_convolution():
    x, q, w, initial = inputs(2, 100, 7, 4)
    powers = q ** torch.arange(101)[:, None, None]
    kernel = (w * powers[:100]).sum(-1).real
    carried = (w * powers[1:] * initial[:, None]).sum(-1).real
    y, _ = ema(x, q, w, initial)
    torch.testing.assert_close(y, long_convolution(x, kernel) + carried, rtol=1e-8, atol=1e-8)


def test_a_real_average_is_a_complex_one_without_imaginary_part():
    x, q, w, initial = inputs(2, 40, 9, 3, torch.float64)
    y, h = ema(x, q, w, initial)
    turned, final = ema(x, *(v.to(torch.complex128) for v in (q, w, initial)))
    torch.testing.assert_close(y, turned, **EXACT)
    torch.testing.assert_close(h, final.real, **EXACT)
    assert h.dtype == torch.float64


def test_float32_is_as_close_as_its_precision_allows():
    given = inputs(2, 300, 40, 16, seed=3)
    single = value_and_gradients(
        [v.to(torch.complex64 if v.is_complex() else torch.float32) for v in given], None, "numba"
    )
    for fast, slow in zip(single, value_and_gradients(given, None, "reference"), strict=True):
        assert ((fast - slow).norm() / slow.norm()).item() < 5e-6  # a memory of 100 steps, each with an error of 1e-7


def test_rates_close_to_one_dont_drift():
    """|q| = 1 - 1e-5 over 20,000 tokens leaves exp(-0.2), with any phase."""
    q = torch.polar(torch.full((1, 1), 1 - 1e-5), torch.full((1, 1), 0.3))
    _, h = ema(torch.zeros(1, 20_000, 1), q, torch.ones(1, 1), torch.ones(1, 1, 1, dtype=torch.complex64))
    assert h.abs().item() == pytest.approx(math.exp(-0.2), rel=2e-3)  # float32 rounds |q| by up to 6e-8 a step


def test_bfloat16_is_computed_in_float32():
    x, q, w, _ = inputs(1, 60, 5, 3)
    x = x.bfloat16()
    y, h = ema(x, q, w)
    expected, last = ema(x.float(), q, w)
    assert y.dtype == torch.bfloat16
    assert h.dtype == torch.complex64
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(h, last, rtol=0, atol=0)


def test_memory_doesnt_hold_the_states():
    x, q, w, _ = (v.requires_grad_() for v in inputs(1, 512, 64, 16))

    def step():
        torch.autograd.grad(ema(x, q, w)[0].sum(), (x, q, w))

    assert peak_bytes(step) <= 4 * 8 * x.numel()


def test_under_compile(unchecked):
    given = [v.requires_grad_() for v in inputs(2, 9, 5, 3)]

    def loss(*v):
        y, final = ema(*v)
        return y.square().sum() + final.abs().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*given), given)
    for ours, theirs in zip(torch.autograd.grad(compiled(*given), given), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("planes", [1, 2])
def test_the_operators_are_registered_as_pytorch_asks(planes):
    shapes = ((1, 5, 3), (planes, 2, 3), (planes, 2, 3), (planes, 1, 2, 3))
    given = [torch.rand(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    torch.library.opcheck(torch.ops.lengthwise.ema.default, (*given, torch.empty(0, 0, dtype=torch.bool)))


def test_threads_give_what_one_gives():
    given = inputs(1, 128, 200, 16)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(value_and_gradients(given, None, "numba"))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_no_tokens_leave_the_state():
    x, q, w, initial = inputs(2, 0, 3, 2)
    for backend in ("reference", *FAST):
        y, h = ema(x, q, w, initial, backend=backend)
        assert y.shape == x.shape
        assert torch.equal(h, initial)


def test_unknown_backend():
    with pytest.raises(InputError, match="numba"):
        ema(*inputs(1, 2, 3, 2), backend="nunba")


def test_the_definition_on_numbers_by_hand():
    x = torch.tensor([[[1.0], [2.0]]])
    y, h = ema_reference(x, torch.tensor([[1j]]), torch.tensor([[1.0 + 1j]]))
    assert y.flatten().tolist() == [1.0, 1.0]  # h = 1, then 2 + i; Re (1 + i)(2 + i) = 1
    assert h.item() == 2 + 1j
