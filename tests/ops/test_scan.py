import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.ops.scan import log_scan, scan

EXACT = {"rtol": 1e-11, "atol": 1e-11}  # float64; the forms differ by the order of rounding


def inputs(op, batch, length, channels, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(batch, length, channels, generator=g, dtype=dtype)
    b = torch.randn(batch, length, channels, generator=g, dtype=dtype)
    initial = torch.randn(batch, channels, generator=g, dtype=dtype)
    return [a.log(), 3 * b, initial] if op is log_scan else [a, b, initial]


def value_and_gradients(op, given, starts, backend):
    given = [v.clone().requires_grad_() for v in given]
    h, final = op(*given, starts, backend=backend)
    g = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=g, dtype=v.dtype)).sum() for v in (h, final))
    return [h, final, *torch.autograd.grad(loss, given)]


ops = pytest.mark.parametrize("op", [scan, log_scan])


@ops
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    channels=st.sampled_from([1, 7, 255, 256, 300]),
    share=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_the_fused_form_equals_the_definition_in_value_and_gradient(op, batch, length, channels, share):
    given = inputs(op, batch, length, channels)
    starts = torch.rand(batch, length, generator=torch.Generator().manual_seed(1)) < share
    expected = value_and_gradients(op, given, starts, "reference")
    for fast, slow in zip(value_and_gradients(op, given, starts, "numba"), expected, strict=True):
        torch.testing.assert_close(fast, slow, **EXACT)


@ops
def test_gradients_equal_finite_differences(op):
    given = [v.requires_grad_() for v in inputs(op, 2, 4, 3)]
    starts = torch.tensor([[False, False, True, False], [True, False, False, False]])
    assert torch.autograd.gradcheck(lambda *v: op(*v, starts, backend="numba"), given)


@ops
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("cut", [0, 1, 11, 12])
def test_goes_on_from_any_cut(op, backend, cut):
    a, b, initial = inputs(op, 2, 12, 5)
    whole, final = op(a, b, initial, backend="reference")
    first, h = op(a[:, :cut], b[:, :cut], initial, backend=backend)
    second, h = op(a[:, cut:], b[:, cut:], h, backend=backend)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **EXACT)
    torch.testing.assert_close(h, final, **EXACT)


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


@ops
def test_under_compile(unchecked, op):
    given = [v.requires_grad_() for v in inputs(op, 2, 9, 5, torch.float32)]

    def loss(*v):
        h, final = op(*v)
        return h.square().sum() + final.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*given), given)
    for ours, theirs in zip(torch.autograd.grad(compiled(*given), given), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@ops
def test_the_operators_are_registered_as_pytorch_asks(op):
    given = [v.requires_grad_() for v in inputs(op, 2, 5, 3)]
    operator = getattr(torch.ops.lengthwise, op.__name__).default
    torch.library.opcheck(operator, (*given, torch.empty(0, 0, dtype=torch.bool)))


@ops
def test_unknown_backend(op):
    with pytest.raises(InputError, match="backend"):
        op(*inputs(op, 1, 2, 3), backend="cuda")
