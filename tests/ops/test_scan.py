import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.ops.scan import log_scan, scan

EXACT = {"rtol": 1e-11, "atol": 1e-11}  # float64; the forms differ by the order of rounding


def equal_factors(a, *others, backend="auto"):
    """The scan whose factors are the same for every token."""
    return scan(a, *others, backend=backend)


def inputs(op, batch, length, channels, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (channels,) if op is equal_factors else (batch, length, channels)
    a = torch.rand(*shape, generator=g, dtype=dtype)
    a = 0.7 * a if dtype.is_complex else a  # real and imaginary part lie in [0, 1)
    b = torch.randn(batch, length, channels, generator=g, dtype=dtype)
    initial = torch.randn(batch, channels, generator=g, dtype=dtype)
    return [a.log(), 3 * b, initial] if op is log_scan else [a, b, initial]


def value_and_gradients(op, given, starts, backend):
    given = [v.clone().requires_grad_() for v in given]
    h, final = op(*given, starts, backend=backend)
    g = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=g, dtype=v.dtype)).sum().real for v in (h, final))
    return [h, final, *torch.autograd.grad(loss, given)]


ops = pytest.mark.parametrize("op", [scan, log_scan])
kinds = pytest.mark.parametrize(
    ("op", "kind"),
    [
        (scan, torch.float64),
        (scan, torch.complex128),
        (equal_factors, torch.float64),
        (equal_factors, torch.complex128),
        (log_scan, torch.float64),
    ],
)


@kinds
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    channels=st.sampled_from([1, 7, 64, 300, 1100]),
    share=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_the_fused_form_equals_the_definition_in_value_and_gradient(op, kind, batch, length, channels, share):
    given = inputs(op, batch, length, channels, kind)
    starts = torch.rand(batch, length, generator=torch.Generator().manual_seed(1)) < share
    expected = value_and_gradients(op, given, starts, "reference")
    for fast, slow in zip(value_and_gradients(op, given, starts, "numba"), expected, strict=True):
        torch.testing.assert_close(fast, slow, **EXACT)


@kinds
def test_gradients_equal_finite_differences(op, kind):
    """In complex numbers too, so the convention is PyTorch's."""
    given = [v.requires_grad_() for v in inputs(op, 2, 4, 3, kind)]
    starts = torch.tensor([[False, False, True, False], [True, False, False, False]])
    assert torch.autograd.gradcheck(lambda *v: op(*v, starts, backend="numba"), given)


@kinds
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("cut", [0, 1, 11, 12])
def test_goes_on_from_any_cut(op, kind, backend, cut):
    a, b, initial = inputs(op, 2, 12, 5, kind)
    whole, final = op(a, b, initial, backend="reference")
    before, after = (a, a) if op is equal_factors else (a[:, :cut], a[:, cut:])
    first, h = op(before, b[:, :cut], initial, backend=backend)
    second, h = op(after, b[:, cut:], h, backend=backend)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **EXACT)
    torch.testing.assert_close(h, final, **EXACT)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_equal_factors_give_powers(backend):
    """h_t = a^t, from a state of 1."""
    a = torch.polar(torch.tensor([0.9, 1.0, 0.5], dtype=torch.float64), torch.tensor([0.1, 2.0, -3.0]).double())
    h, _ = scan(a, torch.zeros(1, 40, 3, dtype=torch.complex128), torch.ones(1, 3, dtype=a.dtype), backend=backend)
    torch.testing.assert_close(h[0], a ** torch.arange(1, 41)[:, None], **EXACT)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_one_complex_input_makes_all_complex(backend):
    a, b, initial = inputs(scan, 2, 9, 4)
    expected, last = scan(a, b, initial)
    for turned in range(3):
        given = [v.to(torch.complex128) if i == turned else v for i, v in enumerate((a, b, initial))]
        h, final = scan(*given, backend=backend)
        assert h.dtype == final.dtype == torch.complex128
        torch.testing.assert_close(h, expected.to(h.dtype), **EXACT)
        torch.testing.assert_close(final, last.to(h.dtype), **EXACT)


def test_conjugates_that_pytorch_has_put_off():
    given = [v.conj() for v in inputs(equal_factors, 2, 9, 4, torch.complex128)]
    assert all(v.is_conj() for v in given)
    h, final = scan(*given)
    expected, last = scan(*(v.resolve_conj() for v in given))
    assert torch.equal(h, expected)
    assert torch.equal(final, last)


@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 1, 3), (2, 4, 3), (2, 5, 1), (2,), (5, 3)])
def test_factors_of_another_shape(unchecked, shape):
    with pytest.raises(InputError, match="beside"):
        scan(torch.ones(shape), torch.ones(2, 5, 3))


def test_logarithms_of_another_length(unchecked):
    with pytest.raises(InputError, match="beside"):
        log_scan(torch.zeros(1, 4, 3), torch.zeros(1, 5, 3))


def test_threads_give_what_one_gives():
    given = inputs(equal_factors, 3, 256, 400, torch.complex128)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            found.append(value_and_gradients(equal_factors, given, None, "numba"))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_logarithms_give_what_real_numbers_give(backend):
    log_a, log_b, log_initial = inputs(log_scan, 2, 100, 5)
    starts = torch.rand(2, 100, generator=torch.Generator().manual_seed(2)) < 0.05
    log_h, log_final = log_scan(log_a, log_b, log_initial, starts, backend=backend)
    h, final = scan(log_a.exp(), log_b.exp(), log_initial.exp(), starts, backend="reference")
    torch.testing.assert_close(log_h.exp(), h, **EXACT)
    torch.testing.assert_close(log_final.exp(), final, **EXACT)


def test_logarithms_hold_over_thousands_of_steps_in_float32():
    """The log decays add up to -4,000, where cumulative sums in float32 lose the digits after the comma."""
    log_a, log_b, _ = inputs(log_scan, 1, 4096, 8)
    exact, _ = log_scan(log_a, log_b, backend="reference")
    single, _ = log_scan(log_a.float(), log_b.float(), backend="numba")
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_logarithms_reach_beyond_the_range_of_floats(backend):
    log_a = torch.full((1, 50, 1), 10.0)
    log_h, _ = log_scan(log_a, torch.zeros(1, 50, 1), backend=backend)
    assert log_h[0, -1, 0].item() == pytest.approx(490, rel=1e-5)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_an_absent_state_and_absent_inputs_stay_absent(backend):
    nothing = torch.full((1, 3, 2), -torch.inf)
    log_h, final = log_scan(torch.zeros(1, 3, 2), nothing, backend=backend)
    assert (log_h == -torch.inf).all()
    assert (final == -torch.inf).all()


@ops
def test_bfloat16_is_computed_in_float32(op):
    a, b, initial = inputs(op, 1, 50, 4, torch.float32)
    h, final = op(a.bfloat16(), b.bfloat16(), initial)
    expected, last = op(a.bfloat16().float(), b.bfloat16().float(), initial)
    assert h.dtype == torch.bfloat16
    torch.testing.assert_close(h, expected.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(final, last, rtol=0, atol=0)


@kinds
def test_under_compile(unchecked, op, kind):
    given = [v.requires_grad_() for v in inputs(op, 2, 9, 5, kind)]

    def loss(*v):
        h, final = op(*v)
        return h.abs().square().sum() + final.real.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*given), given)
    for ours, theirs in zip(torch.autograd.grad(compiled(*given), given), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@kinds
def test_the_operators_are_registered_as_pytorch_asks(op, kind):
    a, b, initial = inputs(op, 2, 5, 3, kind)
    given = [v.requires_grad_() for v in (a[None, None] if op is equal_factors else a, b, initial)]
    operator = torch.ops.lengthwise.log_scan.default if op is log_scan else torch.ops.lengthwise.scan.default
    torch.library.opcheck(operator, (*given, torch.empty(0, 0, dtype=torch.bool)))


@ops
def test_unknown_backend(op):
    with pytest.raises(InputError, match="backend"):
        op(*inputs(op, 1, 2, 3), backend="cuda")
