"""The block-recurrent layer against its equations, one token and one state at a time."""

import pytest
import torch
from torch.nn import functional as F

from lengthwise.contract import state_nbytes
from lengthwise.errors import InputError
from lengthwise.mixers.block_recurrent import CONFIGURATIONS, GATES, BlockRecurrent, linear
from lengthwise.positions.t5 import bucket
from tests.stepping import in_pieces
from tests.stirred import stir

DIM, HEADS, WIDTH, BLOCK, STATES = 12, 3, 4, 5, 4


def layer(**settings):
    torch.manual_seed(0)
    return stir(BlockRecurrent(DIM, **{"heads": HEADS, "block": BLOCK, "states": STATES} | settings).double(), 0.1)


def rms(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def heads(x, weight):
    """Q, Q′, K and V, [4][rows, heads, width]."""
    q, q2, k, v = (x @ part.T for part in weight.chunk(4))
    q, q2, k, v = (part.reshape(len(x), HEADS, WIDTH) for part in (q, q2, k, v))
    return [*(part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q, q2, k)), v]


def bank_heads(made, c):
    weight = torch.cat([made.bank_q_proj.weight, made.bank_kv_proj.weight])
    return heads(rms(c, made.bank_norm) + made.ids, weight)


def look(q, keys, values, scale, bias):
    """One query, [heads, width], of all heads one by one."""
    out = []
    for h in range(HEADS):
        logits = abs(scale[h]) * keys[:, h] @ q[h] + bias[:, h]
        out.append(logits.softmax(0) @ values[:, h])
    return torch.cat(out)


def gated(gate, h, c):
    z = h @ gate.z_proj.weight.T + gate.z_proj.bias
    z = z.tanh() if gate.bounded else z
    if gate.kind == "fixed":
        g = torch.sigmoid(gate.bias)
        return g * c + (1 - g) * z
    i = torch.sigmoid(h @ gate.i_proj.weight.T + gate.i_proj.bias - 1)
    f = torch.sigmoid(h @ gate.f_proj.weight.T + gate.f_proj.bias + 1)
    return f * c + i * z


def states_after(made, c, keys, values):
    q, q2, k, v = bank_heads(made, c)
    none = torch.zeros(len(keys), HEADS, dtype=torch.float64)
    b = torch.stack([
        torch.cat([
            look(q[s], k, v, made.bank_scales[0], none[:1].expand(STATES, -1)),
            look(q2[s], keys, values, made.bank_scales[1], none),
        ])
        for s in range(STATES)
    ])  # fmt: skip
    if made.configuration == "single":
        return gated(made.mlp_gate, F.relu(b @ made.bank_up.weight.T), c)
    c = gated(made.gate, b, c)
    if made.configuration == "dual":
        c = gated(made.mlp_gate, F.relu(rms(c, made.bank_mlp_norm) @ made.bank_up.weight.T), c)
    return c


def by_equations(made, x):
    """One row, token by token, and the states at its end."""
    c, outputs = made.bank, []
    q, q2, k, v = heads(rms(x, made.norm), made.proj.weight)
    for t in range(len(x)):
        if t and t % BLOCK == 0:
            begin = max(0, t - 2 * BLOCK)
            c = states_after(made, c, k[begin:t], v[begin:t])
        _, _, k_c, v_c = bank_heads(made, c)
        seen = torch.arange(max(0, t - BLOCK + 1), t + 1)
        bias = made.position.weight[bucket(seen - t, 32, 128, causal=True)]
        near = look(q[t], k[seen], v[seen], made.scales[0], bias)
        far = look(q2[t], k_c, v_c, made.scales[1], torch.zeros(STATES, HEADS, dtype=torch.float64))
        y = x[t] + torch.cat([near, far]) @ made.o_proj.weight.T
        outputs.append(y + F.relu(rms(y, made.mlp_norm) @ made.up.weight.T) @ made.down.weight.T)
    if len(x) % BLOCK == 0:
        c = states_after(made, c, k[-2 * BLOCK :], v[-2 * BLOCK :])
    return torch.stack(outputs), c


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@torch.no_grad()
def test_equations(gate, configuration):
    made = layer(gate=gate, configuration=configuration)
    for length in (3, 4 * BLOCK, 3 * BLOCK + 2):
        x = torch.randn(2, length, DIM, dtype=torch.float64)
        y, state = made(x)
        for row in range(2):
            expected, bank = by_equations(made, x[row])
            torch.testing.assert_close(y[row], expected, rtol=0, atol=1e-10)
            torch.testing.assert_close(state.bank[row], bank, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cuts", [range(BLOCK, 20, BLOCK), [1, 2, 7, 13], range(1, 20)])
@torch.no_grad()
def test_blocks_one_by_one_and_cut_inside(cuts):
    made = layer().float()
    x = torch.randn(2, 20, DIM)
    y, state = in_pieces(made, x, cuts)
    whole, last = made(x)
    # float32: sums in another order
    torch.testing.assert_close(y, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(state.bank, last.bank, rtol=0, atol=1e-5)


@torch.no_grad()
def test_fixed_gates_that_keep_all_or_nothing():
    made, x = layer(), torch.randn(1, 3 * BLOCK, DIM, dtype=torch.float64)
    made.gate.bias.fill_(60.0)
    torch.testing.assert_close(made(x)[1].bank[0], made.bank, rtol=0, atol=1e-12)
    made.gate.bias.fill_(-60.0)
    made.gate.z_proj.weight.zero_()
    torch.testing.assert_close(made(x)[1].bank[0], made.gate.z_proj.bias.expand(STATES, -1), rtol=0, atol=1e-12)


@torch.no_grad()
def test_without_what_is_read_of_states_it_is_a_layer_of_windows():
    made, x = layer(), torch.randn(2, 3 * BLOCK + 2, DIM, dtype=torch.float64)
    made.o_proj.weight[:, DIM:] = 0
    place = torch.arange(x.shape[1])
    apart = place[:, None] - place
    rows = [heads(rms(row, made.norm), made.proj.weight) for row in x]
    q, _, k, v = (torch.stack(part) for part in zip(*rows, strict=True))
    logits = torch.einsum("bihd,bjhd->bhij", q, k) * made.scales[0].abs()[:, None, None]
    logits = logits + made.position.bias(place, place, HEADS).written()
    p = logits.masked_fill((apart < 0) | (apart >= BLOCK), -torch.inf).softmax(-1)
    y = x + torch.einsum("bhij,bjhd->bihd", p, v).flatten(2) @ made.o_proj.weight[:, :DIM].T
    y = y + made.down(F.relu(made.up(made.mlp_norm(y))))
    torch.testing.assert_close(made(x)[0], y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("backprop", "reached"), [(None, [True] * 4), (2, [False, False, True, True]), (1, [False] * 3 + [True])]
)
def test_gradients_end_before_every_kth_block(backprop, reached):
    made = layer(backprop=backprop)
    x = torch.randn(1, 4 * BLOCK, DIM, dtype=torch.float64, requires_grad=True)
    made(x)[0][:, 3 * BLOCK :].square().sum().backward()
    assert [bool(piece.any()) for piece in x.grad.split(BLOCK, 1)] == reached


@torch.no_grad()
def test_states_stay_apart_and_out_of_half_precision():
    made = layer().bfloat16()
    state = made(torch.randn(1, 4 * BLOCK, DIM, dtype=torch.bfloat16))[1]
    assert state.bank.dtype == torch.float32
    assert torch.pdist(state.bank[0]).min() > 0.01


@torch.no_grad()
def test_bytes_of_any_length():
    made = layer().float()
    for length in range(3 * BLOCK):
        assert state_nbytes(made(torch.randn(2, length, DIM))[1]) == 2 * made.state_nbytes(length)


def test_matrices_begin_with_a_variance_of_one_over_their_width():
    torch.manual_seed(0)
    weight = linear(400, 500).weight.detach()
    assert weight.std().item() * 20 == pytest.approx(1, rel=0.01)
    assert weight.abs().max() * 20 <= 2 / 0.87962566
    assert linear(400, 500, variance=0.1).weight.std().item() * 20 == pytest.approx(0.1**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"states": 0}, "states must be at least 1, got 0"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"heads": 5}, "heads must divide dim"),
        ({"gate": "lstn"}, "did you mean lstm"),
        ({"configuration": "duel"}, "did you mean dual"),
        ({"backprop": 0}, "backprop counts segments"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(InputError, match=message):
        BlockRecurrent(DIM, **settings)
