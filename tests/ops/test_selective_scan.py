import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.ops.selective_scan import selective_scan

FAST = ("numba", "torch")
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64, sums in another order


def inputs(batch, length, channels, state, dtype=torch.float64, seed=0):
    """x, dt, A, B, C, D, initial."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    dt = 0.5 * torch.rand(batch, length, channels, generator=g, dtype=dtype)
    A = -4 * torch.rand(channels, state, generator=g, dtype=dtype)
    x, B, C = normal(batch, length, channels), normal(batch, length, state), normal(batch, length, state)
    return [x, dt, A, B, C, normal(channels), normal(batch, channels, state)]


def value_and_gradients(given, starts, backend):
    given = [v.clone().requires_grad_() for v in given]
    y, final = selective_scan(*given, starts, backend=backend)
    g = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=g, dtype=torch.float64)).sum() for v in (y, final))
    return [y, final, *torch.autograd.grad(loss, given)]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 80),
    channels=st.integers(1, 70),
    state=st.integers(1, 5),
    share=st.sampled_from([0.0, 0.1, 1.0]),
    backend=st.sampled_from(FAST),
)
def test_fast_forms_equal_the_definition_in_value_and_gradient(batch, length, channels, state, share, backend):
    given = inputs(batch, length, channels, state)
    starts = torch.rand(batch, length, generator=torch.Generator().manual_seed(1)) < share
    expected = value_and_gradients(given, starts, "reference")
    for fast, slow in zip(value_and_gradients(given, starts, backend), expected, strict=True):
        torch.testing.assert_close(fast, slow, **EXACT)


def test_float32_is_as_close_as_its_precision_allows():
    given = inputs(2, 300, 40, 16, seed=3)
    single = value_and_gradients([v.float() for v in given], None, "numba")
    for fast, slow in zip(single, value_and_gradients(given, None, "reference"), strict=True):
        assert ((fast - slow).norm() / slow.norm()).item() < 2e-6  # 300 steps of an error of 1e-7 each, not aligned


def test_gradients_equal_finite_differences():
    given = [v.requires_grad_() for v in inputs(1, 4, 3, 2)]
    starts = torch.tensor([[False, False, True, False]])
    assert torch.autograd.gradcheck(lambda *v: selective_scan(*v, starts, backend="numba"), given)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("length", [0, 1, 31, 32, 33])
def test_lengths_around_a_chunk_go_on_from_a_state(backend, length):
    x, dt, A, B, C, D, initial = inputs(2, 40, 6, 3)
    whole, final = selective_scan(x, dt, A, B, C, D, initial, backend="reference")
    h, pieces = initial, []
    for part in (slice(0, length), slice(length, 40)):
        y, h = selective_scan(x[:, part], dt[:, part], A, B[:, part], C[:, part], D, h, backend=backend)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **EXACT)
    torch.testing.assert_close(h, final, **EXACT)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_documents_in_a_row_equal_documents_alone(backend):
    x, dt, A, B, C, D, initial = inputs(1, 50, 6, 3)
    starts = torch.zeros(1, 50, dtype=torch.bool)
    starts[0, [17, 40]] = True
    packed, final = selective_scan(x, dt, A, B, C, D, initial, starts, backend=backend)
    h = initial
    for part in (slice(0, 17), slice(17, 40), slice(40, 50)):
        alone, last = selective_scan(x[:, part], dt[:, part], A, B[:, part], C[:, part], D, h, backend="reference")
        torch.testing.assert_close(packed[:, part], alone, **EXACT)
        h = None
    torch.testing.assert_close(final, last, **EXACT)


def test_constant_step_and_maps_equal_a_convolution():
    x, _, A, *_ = inputs(1, 64, 5, 4)
    g = torch.Generator().manual_seed(5)
    dt, B, C = torch.rand(5, generator=g).double(), torch.randn(4, generator=g).double(), torch.ones(4).double()
    y, _ = selective_scan(x, dt.expand(1, 64, 5), A, B.expand(1, 64, 4), C.expand(1, 64, 4))
    times = torch.arange(64.0).double()
    kernel = torch.einsum("n,n,e,len->le", B, C, dt, torch.exp(times[:, None, None] * dt[:, None] * A))
    spectrum = torch.fft.rfft(x, 128, dim=1) * torch.fft.rfft(kernel, 128, dim=0)
    torch.testing.assert_close(y, torch.fft.irfft(spectrum, 128, dim=1)[:, :64], rtol=1e-9, atol=1e-9)


def test_bfloat16_is_computed_in_float32():
    x, dt, A, B, C, D, initial = inputs(1, 200, 8, 4, torch.float32)
    half = [v.bfloat16() for v in (x, dt)]
    y, final = selective_scan(half[0], half[1], A, B, C, D, initial)
    expected, last = selective_scan(half[0].float(), half[1].float(), A, B, C, D, initial)
    assert y.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(final, last, rtol=0, atol=0)


@pytest.mark.parametrize(("scale", "finite"), [(1e4, True), (1e30, True)])
def test_extreme_steps_forget_at_once_and_stay_finite(scale, finite):
    x, dt, A, B, C, D, initial = inputs(1, 10, 4, 3, torch.float32)
    given = [v.requires_grad_() for v in (x, scale * dt, A)]
    y, _ = selective_scan(given[0], given[1], given[2], B / scale, C, D, initial)
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(v).all() for v in torch.autograd.grad(y.sum(), given))


def test_memory_doesnt_hold_the_states():
    given = [v.requires_grad_() for v in inputs(1, 512, 64, 16, torch.float32)]
    in_and_out = 4 * (3 * 512 * 64 + 2 * 512 * 16)  # x, dt, y; B, C

    def step():
        torch.autograd.grad(selective_scan(*given)[0].sum(), given)

    assert peak_bytes(step) <= 3 * in_and_out
    states = 4 * 512 * 64 * 16
    assert states > 3 * in_and_out


def test_under_compile(unchecked):
    given = [v.requires_grad_() for v in inputs(2, 9, 5, 3, torch.float32)]

    def loss(*v):
        y, final = selective_scan(*v)
        return y.square().sum() + final.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*given), given)
    for ours, theirs in zip(torch.autograd.grad(compiled(*given), given), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_operators_are_registered_as_pytorch_asks():
    given = [v.requires_grad_() for v in inputs(1, 5, 3, 2)]
    nothing = torch.empty(0, 0, dtype=torch.bool)
    torch.library.opcheck(torch.ops.lengthwise.selective_scan.default, (*given, nothing, True))


def test_threads_give_what_one_gives():
    given = inputs(1, 128, 200, 16, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = value_and_gradients(given, None, "numba")
        torch.set_num_threads(3)
        three = value_and_gradients(given, None, "numba")
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, three, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)  # B and C sum over channels in another order


def test_unknown_backend():
    with pytest.raises(InputError, match="numba"):
        selective_scan(*inputs(1, 2, 3, 2), backend="nunba")


def test_half_life_is_kept_over_a_long_sequence():
    """A decay close to 1 must not drift: after 20,000 steps of dt A = -1e-5 the state is exp(-0.2)."""
    length = 20_000
    dt, zeros = torch.full((1, length, 1), 1e-5), torch.zeros(1, length, 1)
    initial = torch.ones(1, 1, 1)
    _, final = selective_scan(zeros, dt, -torch.ones(1, 1), zeros, zeros, None, initial)
    assert final.item() == pytest.approx(math.exp(-0.2), rel=2e-3)  # float32 rounds 1 - 1e-5 by up to 6e-8 a step
