import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.ops import short_convolution
from lengthwise.ops.dilated_convolution import (
    dilated_convolution,
    dilated_convolution_reference,
    newest_output,
)

EXACT = {"rtol": 1e-11, "atol": 1e-11}  # float64, sums in another order
KINDS = pytest.mark.parametrize("kind", ["depthwise", "dense"])
BACKENDS = pytest.mark.parametrize("backend", ["reference", "auto"])


def inputs(batch, length, channels, kernel, dilation, kind="depthwise", dtype=torch.float64):
    """x, weight, bias, history."""
    g = torch.Generator().manual_seed(0)
    out = channels if kind == "depthwise" else channels + 2
    weight = (channels, kernel) if kind == "depthwise" else (out, channels, kernel)
    shapes = ((batch, length, channels), weight, (out,), (batch, (kernel - 1) * dilation, channels))
    return [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]


@KINDS
@BACKENDS
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 3), (2, 1), (3, 4), (5, 5), (9, 2), (3, 40)])
def test_equals_the_librarys_convolution(kind, backend, kernel, dilation):
    x, weight, bias, _ = inputs(2, 31, 5, kernel, dilation, kind)
    y, _ = dilated_convolution(x, weight, bias, dilation=dilation, backend=backend)
    theirs = torch.nn.Conv1d(5, len(bias), kernel, dilation=dilation, groups=5 if kind == "depthwise" else 1)
    theirs.weight.data, theirs.bias.data = weight.reshape(theirs.weight.shape), bias
    expected = theirs(F.pad(x.transpose(1, 2), ((kernel - 1) * dilation, 0))).transpose(1, 2)
    torch.testing.assert_close(y, expected, **EXACT)


def value_and_gradients(op, given, starts, dilation, **options):
    given = [v.clone().requires_grad_() for v in given]
    y, history = op(*given, starts, dilation=dilation, **options)
    g = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=g, dtype=v.dtype)).sum() for v in (y, history))
    return [y, history, *torch.autograd.grad(loss, given)]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2),
    length=st.integers(0, 40),
    channels=st.sampled_from([1, 5, 129]),
    kernel=st.integers(2, 9),
    dilation=st.integers(1, 9),
    share=st.sampled_from([None, 0.0, 0.1, 1.0]),
    kind=st.sampled_from(["depthwise", "dense"]),
)
def test_the_fast_form_equals_the_definition_in_value_and_gradient(
    batch, length, channels, kernel, dilation, share, kind
):
    given = inputs(batch, length, channels, kernel, dilation, kind)
    chance = torch.rand(batch, length, generator=torch.Generator().manual_seed(1))
    starts = None if share is None else chance < share
    expected = value_and_gradients(dilated_convolution_reference, given, starts, dilation)
    for fast, slow in zip(value_and_gradients(dilated_convolution, given, starts, dilation), expected, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)  # sums over 129 channels


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("channels", "dilation"), [(200, 1), (7, 3), (300, 5)])
def test_work_divided_among_threads_gives_the_same(monkeypatch, threads, channels, dilation):
    monkeypatch.setattr(short_convolution.fused, "SMALL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    given = inputs(2, 23, channels, 3, dilation)
    starts = torch.rand(2, 23, generator=torch.Generator().manual_seed(1)) < 0.1
    expected = value_and_gradients(dilated_convolution_reference, given, starts, dilation)
    for fast, slow in zip(value_and_gradients(dilated_convolution, given, starts, dilation), expected, strict=True):
        torch.testing.assert_close(fast, slow, **EXACT)


@pytest.mark.parametrize("room", [1, 50, 2**16])
def test_phases_in_runs_of_any_size_give_the_same(monkeypatch, room):
    kernels = pytest.importorskip("lengthwise.ops.numba_convolution")
    monkeypatch.setattr(kernels, "IN_CACHE", room)
    given = inputs(1, 50, 5, 3, 7)
    expected = value_and_gradients(dilated_convolution_reference, given, None, 7)
    for fast, slow in zip(value_and_gradients(dilated_convolution, given, None, 7), expected, strict=True):
        torch.testing.assert_close(fast, slow, **EXACT)


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 25), max_size=3).map(sorted),
    backend=st.sampled_from(["reference", "auto"]),
    kind=st.sampled_from(["depthwise", "dense"]),
)
def test_goes_on_from_any_cut_with_documents(cuts, backend, kind):
    x, weight, bias, history = inputs(2, 25, 3, 4, 3, kind)
    starts = torch.zeros(2, 25, dtype=torch.bool)
    starts[0, [2, 19]] = starts[1, [11]] = True
    whole, last = dilated_convolution_reference(x, weight, bias, history, starts, dilation=3)
    pieces = []
    for begin, end in zip([0, *cuts], [*cuts, 25], strict=True):
        part = slice(begin, end)
        y, history = dilated_convolution(
            x[:, part], weight, bias, history, starts[:, part], dilation=3, backend=backend
        )
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **EXACT)
    torch.testing.assert_close(history, last, **EXACT)


@KINDS
def test_documents_in_a_row_equal_documents_alone(kind):
    x, weight, bias, _ = inputs(1, 30, 3, 4, 2, kind)
    starts = torch.zeros(1, 30, dtype=torch.bool)
    starts[0, [0, 11, 12]] = True
    packed, history = dilated_convolution(x, weight, bias, None, starts, dilation=2)
    for part in (slice(0, 11), slice(11, 12), slice(12, 30)):
        alone, last = dilated_convolution(x[:, part], weight, bias, dilation=2)
        torch.testing.assert_close(packed[:, part], alone, **EXACT)
    torch.testing.assert_close(history, last, **EXACT)
    changed = x.clone()
    changed[:, :11] = torch.randn(1, 11, 3, dtype=torch.float64)
    again, _ = dilated_convolution(changed, weight, bias, None, starts, dilation=2)
    assert torch.equal(again[:, 11:], packed[:, 11:])


@KINDS
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 3), (2, 1), (4, 5)])
def test_one_token_behind_its_history_has_the_last_output(kind, kernel, dilation):
    x, weight, bias, history = inputs(2, 1, 3, kernel, dilation, kind)
    together = torch.cat([history, x], 1)
    for shift in (bias, None):
        expected, _ = dilated_convolution_reference(x, weight, shift, history, dilation=dilation)
        torch.testing.assert_close(newest_output(together, weight, shift, dilation=dilation), expected, **EXACT)
    with pytest.raises(InputError, match="goes on from a tail of"):
        newest_output(torch.cat([together, x], 1), weight, bias, dilation=dilation)


@KINDS
def test_gradients_equal_finite_differences(kind):
    given = [v.requires_grad_() for v in inputs(1, 7, 2, 3, 2, kind)]
    starts = torch.tensor([[False, False, False, False, True, False, False]])
    assert torch.autograd.gradcheck(lambda *v: dilated_convolution(*v, starts, dilation=2), given)


@KINDS
def test_bfloat16_is_computed_in_float32(kind):
    x, weight, bias, _ = inputs(1, 50, 4, 4, 3, kind, torch.float32)
    y, history = dilated_convolution(x.bfloat16(), weight, bias, dilation=3)
    expected, last = dilated_convolution(x.bfloat16().float(), weight, bias, dilation=3)
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(history, last, rtol=0, atol=0)


@KINDS
def test_impossible_arguments(kind):
    x, weight, bias, history = inputs(1, 5, 3, 4, 2, kind)
    with pytest.raises(InputError, match="dilation 2 goes on from a tail of 6 tokens, got 5"):
        dilated_convolution(x, weight, bias, history[:, 1:], dilation=2)
    with pytest.raises(InputError, match="backend"):
        dilated_convolution(x, weight, bias, dilation=2, backend="fastest")
    with pytest.raises(InputError, match="dilation must be at least 1, got 0"):
        dilated_convolution(x, weight, bias, dilation=0)
