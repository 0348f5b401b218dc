import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.ops import long_convolution as module
from lengthwise.ops.long_convolution import long_convolution, transform_size

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64; a transform's rounding is relative to the largest number


def inputs(batch, length, channels, taps, dtype=torch.float64, seed=0):
    """x and h."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g, dtype=dtype) for shape in ((batch, length, channels), (taps, channels))]


def toeplitz(x, h):
    """The convolution as one matrix product for each channel."""
    length = x.shape[1]
    lag = torch.arange(length)[:, None] - torch.arange(length)
    taps = torch.cat([h, h.new_zeros(1, h.shape[1])])[torch.where((lag < 0) | (lag >= len(h)), len(h), lag)]
    return torch.einsum("tsc,bsc->btc", taps, x)


def value_and_gradients(given, starts, past, backend):
    given = [v.clone().requires_grad_() for v in given]
    y = long_convolution(*given, starts, past, backend=backend)
    g = torch.Generator().manual_seed(7)
    loss = (y * torch.randn(y.shape, generator=g, dtype=torch.float64)).sum()
    return [y, *torch.autograd.grad(loss, given)]


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("taps", [0, 1, 7, 30, 40])
def test_equals_the_toeplitz_product(backend, taps):
    x, h = inputs(2, 30, 5, taps)
    torch.testing.assert_close(long_convolution(x, h, backend=backend), toeplitz(x, h), **EXACT)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    past=st.integers(0, 20),
    new=st.integers(1, 40),
    channels=st.sampled_from([1, 5, 11]),
    taps=st.integers(1, 70),
    share=st.sampled_from([None, 0.0, 0.1, 0.5, 1.0]),
    block=st.sampled_from([1, 100, 2**19]),
)
def test_transforms_equal_the_definition_in_value_and_gradient(batch, past, new, channels, taps, share, block):
    given = inputs(batch, past + new, channels, taps)
    starts = None if share is None else torch.rand(batch, new, generator=torch.Generator().manual_seed(1)) < share
    expected = value_and_gradients(given, starts, past, "reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        for fast, slow in zip(value_and_gradients(given, starts, past, "torch"), expected, strict=True):
            torch.testing.assert_close(fast, slow, **EXACT)


def test_gradients_equal_finite_differences():
    given = [v.requires_grad_() for v in inputs(2, 7, 3, 5)]
    starts = torch.tensor([[False, True, False, False, True], [False] * 5])
    assert torch.autograd.gradcheck(lambda *v: long_convolution(*v, starts, 2), given)
    assert torch.autograd.gradcheck(lambda *v: long_convolution(*v, past=6), given)


@pytest.mark.parametrize("length", [0, 1, 2, 31, 32, 33])
def test_goes_on_from_its_past(length):
    x, h = inputs(2, 50, 6, 50)
    first, second = long_convolution(x[:, :length], h), long_convolution(x, h, past=length)
    torch.testing.assert_close(torch.cat([first, second], 1), long_convolution(x, h), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_token_by_token(dtype):
    x, h = inputs(2, 40, 300, 33, dtype)
    room = torch.full((2, 64, 300), torch.nan, dtype=dtype)  # tokens lie in a buffer with room behind them
    room[:, :40] = x
    steps = [long_convolution(room[:, : t + 1], h, past=t) for t in range(40)]
    tolerance = EXACT if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat(steps, 1), long_convolution(x, h), **tolerance)


def test_not_even_rounding_of_a_document_reaches_another():
    x, h = inputs(2, 60, 4, 60, torch.float32)
    starts = torch.zeros(2, 50, dtype=torch.bool)
    starts[0, [17, 40]], starts[1, 3] = True, True
    y = long_convolution(x, h, starts, 10)
    changed = x.clone()
    changed[0, 27:50] *= 1e6
    again = long_convolution(changed, h, starts, 10)
    assert torch.equal(again[0, :17], y[0, :17])
    assert torch.equal(again[0, 40:], y[0, 40:])
    assert torch.equal(again[1], y[1])
    assert not torch.equal(again[0, 17:40], y[0, 17:40])
    alone = long_convolution(x[:1, 27:50], h)
    torch.testing.assert_close(y[:1, 17:40], alone, rtol=1e-5, atol=1e-5)


def test_what_comes_later_only_rounds():
    x, h = inputs(1, 1000, 3, 1000, torch.float32)
    changed = x.clone()
    changed[:, 500:] = torch.randn(1, 500, 3)
    before, after = (long_convolution(v, h)[:, :500] for v in (x, changed))
    assert ((before - after).abs().max() / before.abs().max()).item() < 1e-6


def test_float32_is_as_close_as_its_precision_allows():
    given = inputs(2, 5000, 3, 5000, seed=3)
    single = value_and_gradients([v.float() for v in given], None, 0, "torch")
    for fast, slow in zip(single, value_and_gradients(given, None, 0, "torch"), strict=True):
        assert ((fast - slow).norm() / slow.norm()).item() < 1e-6


def test_bfloat16_is_computed_in_float32():
    x, h = inputs(1, 200, 8, 200, torch.float32)
    half = x.bfloat16()
    y = long_convolution(half, h)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, long_convolution(half.float(), h).bfloat16(), rtol=0, atol=0)


def test_memory_doesnt_hold_spectra(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2**14)
    given = [v.requires_grad_() for v in inputs(1, 1024, 64, 1024, torch.float32)]
    each = 4 * 1024 * 64

    def step():
        torch.autograd.grad(long_convolution(*given).sum(), given)

    # y, d_y, d_x and d_h; and what is transformed at a time, for which there are a few buffers.
    assert peak_bytes(step) <= 5 * each + 8 * 4 * 2**14


def test_under_compile(unchecked):
    given = [v.requires_grad_() for v in inputs(2, 9, 5, 9, torch.float32)]

    def loss(*v):
        return long_convolution(*v, past=2).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*given), given)
    for ours, theirs in zip(torch.autograd.grad(compiled(*given), given), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("starts", [torch.empty(0, 0, dtype=torch.bool), torch.tensor([[False, True, False]])])
def test_the_operators_are_registered_as_pytorch_asks(starts):
    given = [v.requires_grad_() for v in inputs(1, 5, 3, 4)]
    torch.library.opcheck(torch.ops.lengthwise.long_convolution.default, (*given, starts, 2))


@given(least=st.integers(1, 10**6))
def test_transform_sizes_hold_what_they_must_and_little_more(least):
    size = transform_size(least)
    assert least <= size <= 4 * least // 3 + 1
    while size % 2 == 0:
        size //= 2
    assert size in module.ODD_FACTORS


@pytest.mark.parametrize("past", [-1, 4])
def test_impossible_past(past):
    with pytest.raises(InputError, match="3 tokens of x"):
        long_convolution(*inputs(1, 3, 2, 2), past=past)
