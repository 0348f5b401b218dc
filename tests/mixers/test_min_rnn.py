import pytest
import torch
from torch import nn

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers import min_rnn
from lengthwise.mixers.min_rnn import MinGRU, MinLSTM, log_positive

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
both = pytest.mark.parametrize("kind", [MinGRU, MinLSTM])
forms = pytest.mark.parametrize("form", ["log", "plain"])


def inputs(length=30, dim=8):
    return torch.randn(2, length, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def positive(c):
    return torch.where(c >= 0, c + 0.5, torch.sigmoid(c))


def one_step_at_a_time(mixer, x):
    """The formulas of the paper."""
    h = torch.zeros(x.shape[0], mixer.width, dtype=x.dtype)
    outputs = []
    for x_t in x.unbind(1):
        gates, c = torch.sigmoid(mixer.gate(x_t)), mixer.candidate(x_t)
        candidate = positive(c) if mixer.form == "log" else c
        if isinstance(mixer, MinGRU):
            h = (1 - gates) * h + gates * candidate
        else:
            f, i = gates.chunk(2, -1)
            h = f / (f + i) * h + i / (f + i) * candidate
        outputs.append(mixer.out_proj(h))
    return torch.stack(outputs, 1)


@both
@forms
@pytest.mark.parametrize("expansion", [1, 2])
def test_the_scan_equals_the_formulas(kind, form, expansion):
    torch.manual_seed(0)
    mixer = kind(8, form=form, expansion=expansion).double()
    x = 3 * inputs()
    torch.testing.assert_close(mixer(x)[0], one_step_at_a_time(mixer, x), **CLOSE)


@both
def test_thousands_of_steps_in_float32(kind):
    torch.manual_seed(0)
    mixer = kind(4).double()
    x = 3 * inputs(4096, 4)
    exact = one_step_at_a_time(mixer, x)
    torch.testing.assert_close(mixer.float()(x.float())[0].double(), exact, rtol=1e-5, atol=1e-5)


@both
@forms
@pytest.mark.parametrize("kernel", [None, 1, 4])
@pytest.mark.parametrize("cut", [0, 1, 3, 29])
def test_goes_on_from_any_cut(kind, form, kernel, cut):
    torch.manual_seed(0)
    mixer = kind(8, form=form, kernel=kernel, expansion=2).double()
    x = inputs()
    whole, last = mixer(x)
    first, state = mixer(x[:, :cut])
    second, state = mixer(x[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **CLOSE)
    torch.testing.assert_close(state.h, last.h, **CLOSE)


@both
@forms
@torch.no_grad()
def test_without_gradients_blocks_give_what_the_whole_gives(kind, form, monkeypatch):
    mixer = kind(8, form=form, kernel=3).double()
    x, layout = inputs(), Layout.packed([[11, 19], [30]])
    whole, last = mixer(x, None, layout)
    monkeypatch.setattr(min_rnn, "BLOCK", 7)
    blocks, state = mixer(x, None, layout)
    torch.testing.assert_close(blocks, whole, **CLOSE)
    torch.testing.assert_close(state.h, last.h, **CLOSE)


@both
@forms
def test_no_document_sees_another(kind, form):
    mixer = kind(8, form=form, kernel=3).double()
    x = inputs()[:1]
    packed, _ = mixer(x, None, Layout.packed([[11, 19]]))
    torch.testing.assert_close(packed[:, 11:], mixer(x[:, 11:])[0], **CLOSE)


def fill(linear, weight, bias):
    with torch.no_grad():
        linear.weight.fill_(weight)
        linear.bias.copy_(torch.as_tensor(bias, dtype=linear.bias.dtype).expand_as(linear.bias))


@forms
def test_a_closed_gate_keeps_and_an_open_gate_takes(form):
    mixer, x = MinGRU(4, form=form).double(), inputs(6, 4)
    candidate = mixer.candidate(x)
    candidate = positive(candidate) if form == "log" else candidate
    fill(mixer.gate, 0, 800.0)  # z = 1: h_t is the candidate
    torch.testing.assert_close(mixer(x)[0], candidate, **CLOSE)
    _, state = mixer(x)
    fill(mixer.gate, 0, -800.0)  # z = 0: h_t = h_{t-1}
    torch.testing.assert_close(mixer(x, state)[0], state.h[:, None].expand(2, 6, 4), **CLOSE)


def test_equal_gates_share_evenly():
    mixer, x = MinLSTM(4).double(), inputs(5, 4)
    fill(mixer.gate, 0, 1.7)
    log_decay, log_input = mixer.decay_and_input(x)
    torch.testing.assert_close(log_decay.exp(), torch.full_like(log_decay, 0.5), **CLOSE)
    torch.testing.assert_close(log_input.exp(), torch.full_like(log_decay, 0.5), **CLOSE)


@both
def test_the_two_shares_add_up_to_one(kind):
    mixer = kind(8).double()
    log_decay, log_input = mixer.decay_and_input(20 * inputs())
    torch.testing.assert_close(log_decay.exp() + log_input.exp(), torch.ones_like(log_decay), **CLOSE)


def test_positive_candidate():
    c = torch.tensor([-1000.0, -2, -1e-9, 0, 1e-9, 3], dtype=torch.float64)
    torch.testing.assert_close(log_positive(c).exp(), positive(c), **CLOSE)
    steps = log_positive(torch.linspace(-5, 5, 101)).diff()
    assert (steps > 0).all()
    assert steps.max() < 0.2  # no jump at 0: the slope of log g is at most 2


def test_log_positive_has_a_finite_gradient_everywhere():
    c = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4], requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(log_positive(c).sum(), c)[0]).all()


@pytest.mark.parametrize(
    ("kind", "baseline", "percents"),
    [(MinGRU, nn.GRU, (33, 22, 17, 13)), (MinLSTM, nn.LSTM, (38, 25, 19, 15))],
)
def test_share_of_the_parameters_of_a_gru_or_lstm(kind, baseline, percents):
    """Of the recurrence alone: without biases and the way out."""
    for expansion, percent in zip((1, 2, 3, 4), percents, strict=True):
        mixer = kind(60, expansion=expansion, bias=False)
        ours = mixer.gate.weight.numel() + mixer.candidate.weight.numel()
        theirs = sum(p.numel() for p in baseline(60, expansion * 60, bias=False).parameters())
        assert int(100 * ours / theirs + 0.5) == percent


@both
def test_forget_bias_lengthens_memory(kind):
    torch.manual_seed(0)
    short = kind(8)
    torch.manual_seed(0)
    long = kind(8, forget_bias=3.0)
    x = inputs().float()
    assert (long.decay_and_input(x)[0] > short.decay_and_input(x)[0]).all()


def test_a_state_that_has_underflowed_goes_on():
    mixer = MinGRU(4)
    x = torch.randn(1, 3, 4)
    _, state = mixer(x)
    empty = state.map(torch.zeros_like).map(lambda t: t.requires_grad_())
    y, _ = mixer(x, empty)
    torch.testing.assert_close(y, mixer(x)[0])
    assert torch.isfinite(torch.autograd.grad(y.sum(), empty.h)[0]).all()


@both
def test_impossible_arguments(kind):
    with pytest.raises(InputError, match="expansion"):
        kind(4, expansion=0.1)
    with pytest.raises(InputError, match="kernel"):
        kind(4, kernel=0)
    with pytest.raises(InputError, match="form"):
        kind(4, form="plane")
    with pytest.raises(InputError, match="forget_bias"):
        kind(4, forget_bias=1.0, bias=False)
