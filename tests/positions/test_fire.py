import math

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.fire import EPS, FIRE, ends


def network(fire, distance, n):
    """The definition, through the network, in float64."""
    c, z = fire.c.double().abs(), None
    z = torch.log(c * distance + 1) / (torch.log(c * n + 1) + EPS)
    hidden = torch.relu(z[..., None] * fire.hidden_weight.double() + fire.hidden_bias.double())
    return (hidden @ fire.out_weight.double().T + fire.out_bias.double()).movedim(-1, -3)


def expected(fire, queries, keys):
    distance = (queries[:, None] - keys).abs().double()
    threshold = fire.m.double().abs() * fire.length
    return network(fire, distance, torch.maximum(threshold, queries[:, None].double()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("length", [4, 50])
def test_it_is_the_network_with_all_its_gradients(dtype, length):
    torch.manual_seed(0)
    fire = FIRE(heads=3, length=length, width=8).to(dtype)
    with torch.no_grad():
        fire.c.mul_(-1)
        fire.hidden_weight[2] = 0
        fire.hidden_weight[3] = 0
        fire.hidden_bias[2:4] = torch.tensor([0.5, -0.5])
    queries, keys = torch.arange(11, 30), torch.arange(30)
    weights = torch.randn(3, 19, 30, dtype=torch.float64)
    results = [fire.bias(queries, keys, 3).written()[0].double(), expected(fire, queries, keys)]
    found = [[r, *torch.autograd.grad((r * weights).sum(), list(fire.parameters()))] for r in results]
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5  # sums of 570 numbers in float32
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)


def test_a_straight_line_and_a_tiny_c_are_alibi():
    """ψ(x) ≈ c x, so z = (i − j) / L before position L."""
    fire = FIRE(heads=2, width=1, c=1e-4, length=1000).double()
    with torch.no_grad():
        fire.hidden_weight.fill_(1)
        fire.hidden_bias.zero_()
        fire.out_weight.copy_(torch.tensor([[-3.0], [-8.0]]))
        fire.out_bias.zero_()
    places = torch.arange(20)
    bias = fire.bias(places, places, 2).written()[0]
    slopes = torch.tensor([3.0, 8.0], dtype=torch.float64) / 1000
    alibi = -slopes[:, None, None] * (places[:, None] - places).tril()
    # log(1 + c L) is c L (1 − c L / 2): the limit of c → 0 is 5 % off here, for which the slope makes up
    alibi *= 1e-4 * 1000 / math.log1p(1e-4 * 1000)
    torch.testing.assert_close(bias.tril(), alibi, rtol=1e-3, atol=0)


def test_the_query_is_at_0_and_the_beginning_at_1():
    fire = FIRE(heads=1, width=1, length=8)
    with torch.no_grad():
        fire.hidden_weight.fill_(1)
        fire.hidden_bias.zero_()
        fire.out_weight.fill_(1)
        fire.out_bias.zero_()
    z = fire.bias(torch.arange(30), torch.arange(30), 1).written()[0, 0]
    assert z.diagonal().abs().max() == 0
    torch.testing.assert_close(z[8:, 0], torch.ones(22), atol=2e-6, rtol=0)  # ε = 1e-6 over ψ(8) = 0.59
    assert (z[:8, 0] < 1).all()
    assert (z.tril().diff(dim=1)[torch.ones(30, 29).tril(-1).bool()] < 0).all()


def test_chunks_of_queries_are_rows_of_the_whole():
    torch.manual_seed(0)
    fire = FIRE(heads=2, length=5)
    whole = fire.bias(torch.arange(40), torch.arange(40), 2).written()
    for begin, end in ((0, 7), (7, 8), (8, 40)):
        part = fire.bias(torch.arange(begin, end), torch.arange(end), 2).written()
        assert torch.equal(part, whole[:, :, begin:end, :end])


def test_in_both_directions_the_length_of_the_document_counts():
    torch.manual_seed(0)
    fire = FIRE(heads=2, length=3, causal=False).double()
    for length in (2, 9):
        places = torch.arange(length)
        bias = fire.bias(places, places, 2).written()[0]
        distance = (places[:, None] - places).abs().double()
        torch.testing.assert_close(bias, network(fire, distance, torch.tensor(max(3.0, length - 1))))
    packed = torch.tensor([[0, 1, 2, 0, 1, 0, 0], [0, 0, 0, 1, 2, 3, 4], [1, 5, 6, 0, 3, 9, 2]])
    assert ends(packed).tolist() == [[2, 2, 2, 1, 1, 0, 0], [0, 0, 4, 4, 4, 4, 4], [6, 6, 6, 9, 9, 9, 2]]


def test_nothing_is_infinite_where_the_threshold_is_learned_away():
    fire = FIRE(heads=2)
    with torch.no_grad():
        fire.m.zero_()
    bias = fire.bias(torch.arange(4), torch.arange(4), 2).written()
    assert bias.isfinite().all()
    bias.sum().backward()
    assert all(p.grad.isfinite().all() for p in fire.parameters())


def test_it_stays_in_float32():
    fire = FIRE(heads=2).bfloat16()
    places = torch.arange(2000, 2004)
    with torch.autocast("cpu", torch.bfloat16):
        bias = fire.bias(places, torch.arange(2004), 2).written()[0]
    assert bias.dtype == torch.float32
    torch.testing.assert_close(bias.double(), expected(fire, places, torch.arange(2004)), atol=1e-6, rtol=1e-6)


def test_it_begins_as_two_linear_maps_of_pytorch():
    torch.manual_seed(0)
    network = torch.nn.Linear(1, 32), torch.nn.Linear(32, 12)
    torch.manual_seed(0)
    fire = FIRE(heads=12)
    expected = network[0].weight[:, 0], network[0].bias, network[1].weight, network[1].bias
    for found, wanted in zip(
        (fire.hidden_weight, fire.hidden_bias, fire.out_weight, fire.out_bias), expected, strict=True
    ):
        torch.testing.assert_close(found, wanted)
    assert (fire.c.item(), fire.m.item(), fire.length) == (pytest.approx(0.1), 1, 512)


def test_layers_have_weights_of_their_own_unless_they_share_them():
    layers = "3*(attention(heads=2) + mlp)"
    own = LanguageModel(7, 8, layers, position="fire(heads=2, width=4)")
    one = LanguageModel(7, 8, layers, position="fire(heads=2, width=4, shared=true)")
    size = sum(p.numel() for p in FIRE(heads=2, width=4).parameters())
    assert size == 2 * 4 + 4 * 2 + 2 + 2
    without = sum(p.numel() for p in LanguageModel(7, 8, layers, position="none").parameters())
    assert sum(p.numel() for p in own.parameters()) == without + 3 * size
    assert sum(p.numel() for p in one.parameters()) == without + size
    weights = [p for name, p in own.named_parameters() if name.endswith("hidden_weight")]
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "heads=4"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"heads": 2, "width": 0}, "width must be at least 1"),
        ({"heads": 2, "c": 0}, "c must be above 0"),
        ({"heads": 2, "length": math.inf}, "length must be above 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        FIRE(**settings)


def test_attention_with_other_heads_is_refused():
    with pytest.raises(InputError, match=r"fire\(heads=8\)"):
        FIRE(heads=4).bias(torch.arange(3), torch.arange(3), 8)
