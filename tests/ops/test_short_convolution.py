import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.ops.short_convolution import short_convolution

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64, sums in another order
BACKENDS = pytest.mark.parametrize("backend", ["reference", "numba"])


def inputs(batch, length, channels, kernel, dtype=torch.float64):
    """x, weight, bias, tail."""
    g = torch.Generator().manual_seed(0)
    shapes = ((batch, length, channels), (channels, kernel), (channels,), (batch, kernel - 1, channels))
    return [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]


@BACKENDS
@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_equals_the_librarys_convolution(backend, kernel):
    x, weight, bias, _ = inputs(2, 9, 5, kernel)
    y, _ = short_convolution(x, weight, bias, backend=backend)
    padded = F.pad(x.transpose(1, 2), (kernel - 1, 0))
    expected = F.conv1d(padded, weight[:, None], bias, groups=5).transpose(1, 2)
    torch.testing.assert_close(y, expected, **EXACT)
    y, _ = short_convolution(x, weight, bias, activation="silu", backend=backend)
    torch.testing.assert_close(y, F.silu(expected), **EXACT)


def value_and_gradients(given, starts, activation, backend):
    given = [v.clone().requires_grad_() for v in given]
    y, tail = short_convolution(*given, starts, activation, backend=backend)
    g = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=g, dtype=v.dtype)).sum() for v in (y, tail))
    return [y, tail, *torch.autograd.grad(loss, given)]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 12),
    channels=st.sampled_from([1, 5, 256, 257]),
    kernel=st.integers(2, 5),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    activation=st.sampled_from([None, "silu"]),
)
def test_the_fused_form_equals_the_definition_in_value_and_gradient(batch, length, channels, kernel, share, activation):
    given = inputs(batch, length, channels, kernel)
    starts = torch.rand(batch, length, generator=torch.Generator().manual_seed(1)) < share
    expected = value_and_gradients(given, starts, activation, "reference")
    for fast, slow in zip(value_and_gradients(given, starts, activation, "numba"), expected, strict=True):
        torch.testing.assert_close(fast, slow, **EXACT)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 11), max_size=3).map(sorted), backend=st.sampled_from(["reference", "numba"]))
def test_goes_on_from_any_cut_with_documents(cuts, backend):
    x, weight, bias, tail = inputs(2, 11, 3, 4)
    starts = torch.zeros(2, 11, dtype=torch.bool)
    starts[0, [2, 9]] = starts[1, [5]] = True
    whole, last = short_convolution(x, weight, bias, tail, starts, backend="reference")
    pieces = []
    for begin, end in zip([0, *cuts], [*cuts, 11], strict=True):
        part = slice(begin, end)
        y, tail = short_convolution(x[:, part], weight, bias, tail, starts[:, part], backend=backend)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **EXACT)
    torch.testing.assert_close(tail, last, **EXACT)


@BACKENDS
def test_documents_in_a_row_equal_documents_alone(backend):
    x, weight, bias, _ = inputs(1, 8, 3, 4)
    starts = torch.zeros(1, 8, dtype=torch.bool)
    starts[0, [0, 5, 6]] = True
    packed, tail = short_convolution(x, weight, bias, None, starts, backend=backend)
    for part in (slice(0, 5), slice(5, 6), slice(6, 8)):
        alone, last = short_convolution(x[:, part], weight, bias, backend="reference")
        torch.testing.assert_close(packed[:, part], alone, **EXACT)
    torch.testing.assert_close(tail, last, **EXACT)


def test_gradients_equal_finite_differences():
    given = [v.requires_grad_() for v in inputs(1, 4, 2, 3)]
    starts = torch.tensor([[False, False, True, False]])
    assert torch.autograd.gradcheck(lambda *v: short_convolution(*v, starts, "silu", backend="numba"), given)


def test_the_tail_doesnt_keep_the_inputs_alive():
    x, weight, bias, _ = inputs(1, 100, 3, 4)
    _, tail = short_convolution(x, weight, bias)
    assert tail.untyped_storage().nbytes() == 3 * 3 * 8


@BACKENDS
def test_a_kernel_of_one_has_no_tail(backend):
    x, weight, bias, _ = inputs(1, 3, 2, 1)
    _, tail = short_convolution(x, weight, bias, backend=backend)
    assert tail.shape == (1, 0, 2)


@BACKENDS
def test_bfloat16_is_computed_in_float32(backend):
    x, weight, bias, _ = inputs(1, 50, 4, 4, torch.float32)
    y, tail = short_convolution(x.bfloat16(), weight, bias, activation="silu", backend=backend)
    expected, last = short_convolution(x.bfloat16().float(), weight, bias, activation="silu", backend=backend)
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(tail, last, rtol=0, atol=0)


def test_under_compile(unchecked):
    given = [v.requires_grad_() for v in inputs(2, 9, 5, 4, torch.float32)]

    def loss(*v):
        y, tail = short_convolution(*v, activation="silu")
        return y.square().sum() + tail.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*given), given)
    for ours, theirs in zip(torch.autograd.grad(compiled(*given), given), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_operator_is_registered_as_pytorch_asks():
    x, weight, bias, tail = (v.requires_grad_() for v in inputs(1, 5, 3, 4))
    nothing = torch.empty(0, 0, dtype=torch.bool)
    given = (x, weight.t(), bias, tail, nothing, 1, True)
    torch.library.opcheck(torch.ops.lengthwise.short_convolution.default, given)


def test_impossible_arguments():
    x, weight, bias, tail = inputs(1, 5, 3, 4)
    with pytest.raises(InputError, match="tail of 3 tokens, got 2"):
        short_convolution(x, weight, bias, tail[:, 1:])
    with pytest.raises(InputError, match="activation must be 'silu'"):
        short_convolution(x, weight, bias, activation="gelu")
