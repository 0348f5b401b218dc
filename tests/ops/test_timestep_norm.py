import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.ops.timestep_norm import first_statistics, timestep_norm

FAST = ("numba", "torch")
EXACT = {"rtol": 1e-11, "atol": 1e-11}  # float64, sums in another order


def inputs(batch, length, groups, size, seed=0):
    """x, gain, bias, mean and variance, and the steps that these count."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x = 0.5 + normal(batch, length, groups * size)
    channels = normal(groups * size), normal(groups * size)
    return [x, *channels, normal(batch, groups), normal(batch, groups).square()], 3 + torch.arange(batch)


def value_and_gradients(given, count, starts, padding, groups, prior, backend):
    x, gain, bias, mean, variance = given = [v.clone().requires_grad_() for v in given]
    settings = {"groups": groups, "prior": prior, "backend": backend}
    y, (count, mean, variance) = timestep_norm(x, gain, bias, (count, mean, variance), starts, padding, **settings)
    g = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=g, dtype=v.dtype)).sum() for v in (y, mean, variance))
    return [y, count, mean, variance, *torch.autograd.grad(loss, given)]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 40),
    groups=st.integers(1, 70),
    size=st.integers(1, 9),
    prior=st.integers(0, 2),
    begin=st.sampled_from([None, 0.1, 0.5, 1.0]),
    absent=st.sampled_from([None, 0.2, 1.0]),
    backend=st.sampled_from(FAST),
)
def test_fast_forms_equal_the_definition_in_value_and_gradient(
    batch, length, groups, size, prior, begin, absent, backend
):
    given, count = inputs(batch, length, groups, size)
    g = torch.Generator().manual_seed(1)
    starts, padding = (
        None if share is None else torch.rand(batch, length, generator=g) < share for share in (begin, absent)
    )
    expected = value_and_gradients(given, count, starts, padding, groups, prior, "reference")
    found = value_and_gradients(given, count, starts, padding, groups, prior, backend)
    for fast, slow in zip(found, expected, strict=True):
        torch.testing.assert_close(fast, slow, **EXACT)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("prior", [0, 3])
def test_statistics_are_those_of_all_past_values(backend, prior):
    """Each step's values, and the prior's, which have mean 0 and variance 1, weigh the same."""
    (x, gain, bias, *_), _ = inputs(2, 60, 3, 5)
    y, (count, mean, variance) = timestep_norm(x, gain, bias, groups=3, prior=prior, backend=backend)
    grouped, before = x.view(2, 60, 3, 5), torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0], dtype=torch.float64)
    before = (before * 5**0.5 / 2).expand(2, prior, 3, 5)
    for t in (0, 1, 30, 59):
        seen = torch.cat([before, grouped[:, : t + 1]], 1).transpose(1, 2).flatten(2)
        middle, spread = seen.mean(-1, keepdim=True), seen.var(-1, correction=0, keepdim=True)
        expected = ((grouped[:, t] - middle) / (spread + 1e-5).sqrt()).flatten(1) * gain + bias
        torch.testing.assert_close(y[:, t], expected, **EXACT)
    torch.testing.assert_close(mean, middle[..., 0], **EXACT)
    torch.testing.assert_close(variance, spread[..., 0], **EXACT)
    assert count.tolist() == [60 + prior] * 2


@pytest.mark.parametrize("backend", FAST)
def test_float32_stays_exact_over_a_long_sequence(backend):
    """Cumulative sums would have lost the variance, 1, beside the squares, 10⁴ times 200,000. The mean stands still
    where its steps fall below half a unit in the last place of 100, 4e-6, from about 100,000 tokens on."""
    torch.manual_seed(0)
    x = (100 + torch.randn(1, 200_000, 8)).float()
    _, (_, mean, variance) = timestep_norm(x, torch.ones(8), torch.zeros(8), groups=2, backend=backend)
    seen = x.double().view(-1, 2, 4).transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean[0].double(), seen.mean(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(variance[0].double(), seen.var(1, correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_small_values_in_the_first_step_have_their_own_variance(backend):
    """The variance of 1 that the statistics begin with must leave no rounding behind."""
    x = torch.tensor([[[1e-3, 3e-3]]])
    _, (_, mean, variance) = timestep_norm(x, torch.ones(2), torch.zeros(2), groups=1, backend=backend)
    torch.testing.assert_close(mean, torch.tensor([[2e-3]]), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, torch.tensor([[1e-6]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("cut", [0, 1, 7, 19, 20])
def test_goes_on_from_a_state_at_any_length(backend, cut):
    (x, gain, bias, mean, variance), count = inputs(2, 20, 3, 4)
    before, settings = (count, mean, variance), {"groups": 3, "backend": backend}
    whole, final = timestep_norm(x, gain, bias, before, groups=3, backend="reference")
    first, state = timestep_norm(x[:, :cut], gain, bias, before, **settings)
    second, state = timestep_norm(x[:, cut:], gain, bias, state, **settings)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **EXACT)
    for a, b in zip(state, final, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_documents_and_padding(backend):
    """Documents in a row are as alone; padding gives 0, whatever is in it, and leaves the statistics."""
    (x, gain, bias, *_), _ = inputs(1, 12, 2, 4)
    starts, padding = torch.zeros(2, 1, 12, dtype=torch.bool)
    starts[0, [0, 5]] = padding[0, 10:] = True
    x[0, 10:] = torch.inf
    settings = {"groups": 2, "backend": backend}
    y, state = timestep_norm(x, gain, bias, None, starts, padding, **settings)
    for part in (slice(0, 5), slice(5, 10)):
        alone, last = timestep_norm(x[:, part], gain, bias, **settings)
        torch.testing.assert_close(y[:, part], alone, **EXACT)
    assert (y[0, 10:] == 0).all()
    for a, b in zip(state, last, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("prior", [0, 2])
def test_gradients_equal_finite_differences(prior):
    given, count = inputs(1, 6, 2, 3)
    given = [v.requires_grad_() for v in given]
    starts = torch.tensor([[False, False, True, False, False, False]])
    for borders in (None, starts):

        def run(x, gain, bias, mean, variance, borders=borders):
            y, after = timestep_norm(
                x, gain, bias, (count, mean, variance), borders, groups=2, prior=prior, backend="numba"
            )
            return y, *after[1:]

        assert torch.autograd.gradcheck(run, given)


def test_bfloat16_is_computed_in_float32():
    (x, gain, bias, *_), _ = inputs(2, 30, 2, 4)
    x, gain, bias = x.bfloat16(), gain.float(), bias.float()
    y, (_, mean, _) = timestep_norm(x, gain, bias, groups=2)
    expected, (_, exact, _) = timestep_norm(x.float(), gain, bias, groups=2)
    assert (y.dtype, mean.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(mean, exact, rtol=0, atol=0)


def test_memory_is_that_of_output_and_gradient():
    given, _ = inputs(1, 512, 4, 32)
    x, gain, bias = (v.requires_grad_() for v in given[:3])

    def step():
        torch.autograd.grad(timestep_norm(x, gain, bias, groups=4)[0].sum(), (x, gain, bias))

    assert peak_bytes(step) <= 3.3 * 8 * x.numel()  # y, its gradient, that of x, and 2 numbers of 32 channels


def test_under_compile(unchecked):
    (x, gain, bias, *_), _ = inputs(2, 9, 3, 4)
    given = [v.requires_grad_() for v in (x, gain, bias)]

    def loss(*v):
        y, (_, mean, variance) = timestep_norm(*v, groups=3)
        return y.pow(3).sum() + mean.sum() + variance.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*given), given)
    for ours, theirs in zip(torch.autograd.grad(compiled(*given), given), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_operator_is_registered_as_pytorch_asks():
    (x, gain, bias, mean, variance), count = inputs(2, 5, 3, 4)
    none = torch.empty(0, 0, dtype=torch.bool)
    counts = count[:, None] + torch.arange(1, 6)
    x, gain, bias = x.requires_grad_(), gain.view(3, 4).requires_grad_(), bias.view(3, 4).requires_grad_()
    given = (x, gain, bias, counts, none, none, mean.requires_grad_(), variance.requires_grad_(), 1e-5)
    torch.library.opcheck(torch.ops.lengthwise.timestep_norm.default, given)


def test_threads_give_what_one_gives():
    given, count = inputs(2, 300, 40, 16)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(value_and_gradients(given, count, None, None, 40, 0, "numba"))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_no_tokens_leave_the_state(backend):
    (x, gain, bias, mean, variance), count = inputs(2, 0, 2, 3)
    y, after = timestep_norm(x, gain, bias, (count, mean, variance), groups=2, backend=backend)
    assert y.shape == x.shape
    for a, b in zip(after, (count, mean, variance), strict=True):
        assert torch.equal(a, b)


def test_the_first_statistics():
    count, mean, variance = first_statistics(torch.zeros(2, 3, 8), groups=4, prior=2)
    assert count.tolist() == [2, 2]
    assert (mean.shape, mean.abs().sum().item(), variance.mean().item()) == ((2, 4), 0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 3}, "groups must divide the 4 channels, got groups=3"),
        ({"groups": 0}, "groups=0"),
        ({"groups": 2, "prior": -1}, "prior must be at least 0, got -1"),
        ({"groups": 2, "backend": "nunba"}, "numba"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(InputError, match=message):
        timestep_norm(torch.randn(1, 2, 4), torch.ones(4), torch.zeros(4), **settings)
