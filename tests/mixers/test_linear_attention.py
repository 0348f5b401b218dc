"""Linear attention: what is particular to it. The laws of all mixers are tested in `tests/laws`."""

import pytest
import torch

import lengthwise as lw
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.linear_attention import LinearAttention
from lengthwise.positions.alibi import ALiBi
from lengthwise.positions.none import NoPosition
from lengthwise.positions.rope import RoPE

EXACT = {"rtol": 1e-10, "atol": 1e-10}
DIM, HEADS = 16, 2


def mixer(**settings):
    torch.manual_seed(0)
    return LinearAttention(DIM, heads=HEADS, **settings).double().eval()


def phi(x):
    return torch.where(x > 0, x + 1, x.exp())


def projected(module, x):
    return [
        (x @ linear.weight.T + linear.bias).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for linear in (module.q_proj, module.k_proj, module.v_proj)
    ]


def weighted_mean(module, top, bottom, v):
    """Rows of the scores `top`, over the sums of the rows of `bottom`, times the values, through W_o."""
    y = (top @ v / (bottom.sum(-1, keepdim=True) + module.eps)).transpose(1, 2).flatten(2)
    return y @ module.o_proj.weight.T + module.o_proj.bias


@pytest.mark.parametrize("length", [1, 2, 129])
def test_causal_form_is_the_normalised_lower_triangle(length):
    module, x = mixer(), torch.randn(2, length, DIM, dtype=torch.float64)
    q, k, v = projected(module, x)
    scores = (phi(q) @ phi(k).mT).tril()
    torch.testing.assert_close(module(x)[0], weighted_mean(module, scores, scores, v), **EXACT)


@pytest.mark.parametrize("causal", [True, False])
def test_rotation_turns_the_numerator_alone(causal):
    module, x = mixer(position=RoPE(), causal=causal), torch.randn(2, 140, DIM, dtype=torch.float64)
    q, k, v = projected(module, x)
    places = torch.arange(140)
    turned = [RoPE().rotate(phi(t).transpose(1, 2), phi(t).transpose(1, 2), places, places)[0] for t in (q, k)]
    top, bottom = turned[0].transpose(1, 2) @ turned[1].transpose(1, 2).mT, phi(q) @ phi(k).mT
    if causal:
        top, bottom = top.tril(), bottom.tril()
    torch.testing.assert_close(module(x)[0], weighted_mean(module, top, bottom, v), **EXACT)


def test_rotation_goes_on_at_the_position_of_the_state():
    module, x = mixer(position=RoPE()), torch.randn(2, 20, DIM, dtype=torch.float64)
    _, state = module(x[:, :7])
    assert state.position.tolist() == [7, 7]
    torch.testing.assert_close(module(x[:, 7:], state)[0], module(x)[0][:, 7:], **EXACT)


def test_bidirectional_form_is_the_normalised_square():
    module, x = mixer(causal=False), torch.randn(2, 33, DIM, dtype=torch.float64)
    q, k, v = projected(module, x)
    scores = phi(q) @ phi(k).mT
    y, state = module(x)
    assert state is None
    torch.testing.assert_close(y, weighted_mean(module, scores, scores, v), **EXACT)


@pytest.mark.parametrize("position", [None, RoPE()])
def test_bidirectional_documents_see_themselves_alone_and_no_padding(position):
    module = mixer(causal=False, position=position)
    lengths = [[9, 140], [4]]
    layout = Layout.packed(lengths)
    x = torch.randn(2, 149, DIM, dtype=torch.float64)
    y, _ = module(x, None, layout)
    for row, begin, end in ((0, 0, 9), (0, 9, 149), (1, 0, 4)):
        torch.testing.assert_close(y[row, begin:end], module(x[row : row + 1, begin:end])[0][0], **EXACT)


def test_the_state_is_in_float32_and_as_large_as_stated():
    for position in (None, RoPE()):
        module = LinearAttention(DIM, heads=HEADS, position=position)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, state = module(torch.randn(1, 10, DIM))
        assert state.memory.dtype == torch.float32
        assert state.nbytes == module.state_nbytes(10)
    assert module.state_nbytes(1) == 4 * DIM * (DIM // HEADS + 1) + 8


def test_relu_where_no_feature_is_shared_gives_zero_instead_of_nan():
    module = mixer(feature_map="relu")
    with torch.no_grad():
        module.k_proj.weight.zero_()
        module.k_proj.bias.fill_(-1)
    y, _ = module(torch.randn(1, 5, DIM, dtype=torch.float64))
    torch.testing.assert_close(y, module.o_proj.bias.expand(1, 5, DIM))


def test_expressions_and_positions_that_do_nothing():
    assert lw.build("linear_attention(heads=2, position=rope)", dim=DIM).position is not None
    assert LinearAttention(DIM, position=NoPosition()).position is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads must divide dim"),
        ({"feature_map": "elo"}, "unknown feature map 'elo'; did you mean elu"),
        ({"position": ALiBi()}, "no logits to add ALiBi to"),
    ],
)
def test_impossible_settings_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        LinearAttention(DIM, **settings)
