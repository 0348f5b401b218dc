"""The weighted average of RWKV against the recurrence, and the recurrence against the double sum."""

import pytest
import torch

from lengthwise.ops.numba_wkv import CHUNK
from lengthwise.ops.wkv import EMPTY, wkv, wkv_reference, wkv_with_weights

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def inputs(length, batch=2, channels=5, scale=1.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    k, v = scale * draw(batch, length, channels), draw(batch, length, channels)
    w, u = draw(channels).exp(), draw(channels)
    state = torch.stack([draw(batch, channels), draw(batch, channels).exp(), draw(batch, channels)], 1)
    starts = torch.rand(batch, length, generator=generator) < 0.1
    return [t.to(dtype) for t in (k, v, w, u, state)], starts


def double_sum(k, v, w, u, starts=None):
    """y and the logarithm of its denominator, a sum for each token."""
    y, log = torch.zeros_like(v), torch.zeros_like(v)
    for row in range(k.shape[0]):
        begin = 0
        for t in range(k.shape[1]):
            begin = t if starts is not None and starts[row, t] else begin
            past = torch.arange(begin, t)
            logs = torch.cat([k[row, begin:t] - (t - 1 - past)[:, None] * w, (u + k[row, t])[None]])
            log[row, t] = logs.logsumexp(0)
            y[row, t] = (logs.softmax(0) * v[row, begin : t + 1]).sum(0)
    return y, log


def results(tensors, starts, backend, op=wkv):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    outputs = op(*leaves, starts, backend=backend)
    generator = torch.Generator().manual_seed(1)
    # The maximum of a state that nothing has entered is a very negative number that says nothing.
    losses = [(t.clamp(min=-1e6) * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in outputs]
    gradients = torch.autograd.grad(sum(losses), leaves, allow_unused=True, materialize_grads=True)
    return [*outputs, *gradients]


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_the_recurrence_is_the_double_sum(scale):
    (k, v, w, u, _), starts = inputs(23, scale=scale)
    for borders in (None, starts):
        y, log, _ = wkv_reference(k, v, w, u, None, borders)
        torch.testing.assert_close((y, log), double_sum(k, v, w, u, borders), **EXACT)


@pytest.mark.parametrize("length", [0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
@pytest.mark.parametrize("op", [wkv, wkv_with_weights])
def test_kernels_equal_the_definition_in_value_and_gradient(length, op):
    tensors, starts = inputs(length, channels=150)
    for borders in (None, starts, torch.ones_like(starts)):
        for a, b in zip(*(results(tensors, borders, form, op) for form in ("numba", "reference")), strict=True):
            torch.testing.assert_close(a, b, **EXACT)


def test_gradients_are_those_of_finite_differences():
    tensors, starts = inputs(7, batch=1, channels=2)
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *given: wkv_with_weights(*given, starts), leaves)


def test_an_empty_state_is_no_token():
    (k, v, w, u, _), _ = inputs(9)
    y, state = wkv(k, v, w, u)
    torch.testing.assert_close(y[:, 0], v[:, 0])  # a phantom token of weight 1 would draw it to 0
    empty = torch.zeros_like(state)
    empty[:, 2] = EMPTY
    assert torch.equal(wkv(k, v, w, u, empty)[0], y)


@pytest.mark.parametrize("cut", [0, 1, CHUNK, 50])
def test_goes_on_from_any_cut(cut):
    (k, v, w, u, state), starts = inputs(50)
    whole, last = wkv(k, v, w, u, state, starts)
    first, middle = wkv(k[:, :cut], v[:, :cut], w, u, state, starts[:, :cut])
    second, after = wkv(k[:, cut:], v[:, cut:], w, u, middle, starts[:, cut:])
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **EXACT)
    torch.testing.assert_close(after, last, **EXACT)


def test_nothing_passes_a_start():
    (k, v, w, u, _), _ = inputs(12)
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[:, 5] = True
    y, state = wkv(k, v, w, u, None, starts)
    alone, after = wkv(k[:, 5:], v[:, 5:], w, u)
    assert torch.equal(y[:, 5:], alone)
    assert torch.equal(state, after)


def test_limits_of_the_decay():
    (k, v, w, u, _), _ = inputs(20)
    strong, _ = wkv(k, v, torch.full_like(w, 1e4), u)
    share = torch.sigmoid(u + k[:, 1:] - k[:, :-1])
    torch.testing.assert_close(strong[:, 1:], share * v[:, 1:] + (1 - share) * v[:, :-1], **EXACT)
    none, _ = wkv(k, v, torch.zeros_like(w), torch.zeros_like(u))
    weights = torch.exp(k)
    torch.testing.assert_close(none, (weights * v).cumsum(1) / weights.cumsum(1), **EXACT)


@pytest.mark.parametrize("scale", [50.0, 1e4])
def test_keys_at_the_edge_of_overflow_are_right_in_single_precision(scale):
    (k, v, w, u, _), starts = inputs(70, scale=scale)

    def average(*given, backend):
        return wkv(*given[:4], None, given[4], backend=backend)

    single = [t.float() for t in (k, v, w, u)]
    found = results(single, starts, "numba", average)
    expected = results([t.double() for t in single], starts, "reference", average)
    assert all(t.isfinite().all() for t in found)
    # In single precision a maximum of `scale` is rounded by 6e-8 of it, which moves a weight by as much, at each step.
    torch.testing.assert_close(found[0].double(), expected[0], rtol=0, atol=1e-6 * scale)


def test_half_precision_keeps_the_state_in_float32():
    (k, v, w, u, _), _ = inputs(30)
    y, state = wkv(k.bfloat16(), v.bfloat16(), w.float(), u.float())
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("weigh", [False, True])
def test_the_op_is_what_it_tells_the_compiler(weigh):
    tensors, starts = inputs(9, dtype=torch.float32)
    given = (*(t.requires_grad_() for t in tensors), starts, weigh, True)
    assert set(torch.library.opcheck(torch.ops.lengthwise.wkv, given).values()) == {"SUCCESS"}
