"""DeltaNet: what is particular to it. The laws of all mixers are tested in `tests/laws`."""

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.mixers.deltanet import DeltaNet

EXACT = {"rtol": 1e-10, "atol": 1e-10}
DIM, HEADS = 16, 2
WIDTH = DIM // HEADS


def mixer(**settings):
    torch.manual_seed(0)
    module = DeltaNet(DIM, heads=HEADS, **settings).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():  # larger than at the beginning, so that every term counts
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return module


def silu(x):
    return x / (1 + (-x).exp())


def by_hand(module, x):
    """The equations of the layer, one token and one head at a time, from scratch."""
    taps = module.conv1d.weight[:, 0]
    mixed = torch.cat([x @ linear.weight.T for linear in (module.q_proj, module.k_proj, module.v_proj)], -1)
    y = torch.zeros_like(x)
    for b in range(x.shape[0]):
        memory = [torch.zeros(WIDTH, WIDTH, dtype=x.dtype) for _ in range(HEADS)]
        for t in range(x.shape[1]):
            past = [mixed[b, t - j] if t >= j else torch.zeros(3 * DIM, dtype=x.dtype) for j in range(taps.shape[1])]
            qkv = silu(sum(taps[:, -1 - j] * past[j] for j in range(taps.shape[1])))
            outputs = []
            for h in range(HEADS):
                q, k, v = (qkv[part * DIM + h * WIDTH : part * DIM + (h + 1) * WIDTH] for part in range(3))
                q, k = (u / (u.square().sum() + 1e-6).sqrt() for u in (q, k))
                beta = module.largest_beta / (1 + (-(module.b_proj.weight[h] @ x[b, t])).exp())
                memory[h] = memory[h] + beta * torch.outer(k, v - memory[h].T @ k)
                o = memory[h].T @ q / WIDTH**0.5
                outputs.append(o / (o.square().mean() + 1e-5).sqrt() * module.norm.weight)
            o = torch.cat(outputs)
            if module.g_proj is not None:
                o = o * silu(module.g_proj.weight @ x[b, t])
            y[b, t] = module.o_proj.weight @ o
    return y


@pytest.mark.parametrize(
    "settings",
    [{}, {"gate": True}, {"largest_beta": 2.0}, {"convolution": 1}],
    ids=["plain", "gate", "beta", "one tap"],
)
def test_is_the_equations_of_the_layer(settings):
    module, x = mixer(**settings), torch.randn(2, 70, DIM, dtype=torch.float64)
    torch.testing.assert_close(module(x)[0], by_hand(module, x), **EXACT)


def test_the_state_is_in_float32_and_as_large_as_stated():
    module = DeltaNet(DIM, heads=HEADS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = module(torch.randn(1, 10, DIM))
    assert (y.dtype, state.memory.dtype) == (torch.bfloat16, torch.float32)
    assert state.nbytes == module.state_nbytes(10) == 4 * (HEADS * WIDTH**2 + 9 * DIM)


def test_a_token_that_writes_at_full_rate_is_read_back():
    module = mixer()
    with torch.no_grad():
        module.b_proj.weight.zero_()
    q = torch.randn(1, 5, HEADS, WIDTH, dtype=torch.float64)
    v = torch.randn(1, 5, HEADS, WIDTH, dtype=torch.float64)
    o, _ = module.recall(q, q, v, torch.ones(1, 5, HEADS, dtype=torch.float64), None, None)
    torch.testing.assert_close(o * WIDTH**0.5, v, rtol=1e-5, atol=1e-5)  # 1e-6 under the root of the norm


def test_weights_begin_as_in_the_paper():
    torch.manual_seed(0)
    module = DeltaNet(128, gate=True)
    for linear in (module.q_proj, module.v_proj, module.o_proj, module.g_proj):
        assert linear.bias is None
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert module.norm.weight.shape == (64,)
    assert torch.equal(module.norm.weight, torch.ones(64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads must divide dim"),
        ({"convolution": 0}, "at least 1 tap, got 0"),
        ({"largest_beta": 2.5}, "at most 2, or the memory explodes; got 2.5"),
    ],
)
def test_impossible_settings_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        DeltaNet(DIM, **settings)
