import math

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.mixers.attention import Attention
from lengthwise.models.build import build
from lengthwise.models.language_model import LanguageModel
from lengthwise.ops.attention import attention_reference
from lengthwise.ops.patterns import full
from lengthwise.positions import T5, ALiBi, RoPE
from lengthwise.positions.temperature import Constant, LogScaling, LogSlope, as_temperature

POSITIONS = torch.tensor([[0, 6, 7, 8, 99]])


def test_the_log_laws_by_hand():
    n = [1, 7, 8, 9, 100]
    scaling = [1.0 if m <= 8 else math.log(2 + m) / math.log(10) for m in n]
    slope = [1.0 if m <= 8 else 1 + 0.3 * math.log(m / 8) for m in n]
    assert LogScaling(8, a=2).factor(POSITIONS, False)[0].tolist() == pytest.approx(scaling)
    assert LogSlope(8, b=0.3).factor(POSITIONS, False)[0].tolist() == pytest.approx(slope)


@pytest.mark.parametrize("law", [LogScaling(8), LogSlope(8)])
def test_nothing_is_scaled_in_training(law):
    assert law.factor(POSITIONS, True) == 1
    assert law.factor(POSITIONS, False).max() > 1


def test_the_law_of_llama_4_has_the_same_form():
    """Its steps of 8192 aside, 1 + 0.1 log(⌊n / 8192⌋ + 1) is the slope law far beyond the trained length."""
    n = 8192 * 10_000
    theirs = 1 + 0.1 * math.log(math.floor(n / 8192) + 1)
    assert float(LogSlope(8192).factor(torch.tensor([[n - 1]]), False)) == pytest.approx(theirs, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("position", [None, RoPE(), ALiBi(), T5(heads=2, causal=False)])
def test_content_and_bias_are_divided_together(position):
    torch.manual_seed(0)
    layer = Attention(8, heads=2, causal=False, position=position, temperature=0.6)
    x, places = torch.randn(2, 9, 8), torch.arange(9)
    q, k, v = layer.project(x)
    bias = None
    if position is not None:
        q, k = position.rotate(q, k, places, places)
        bias = position.bias(places, places, 2)
        bias = None if bias is None else bias.written() / 0.6
    o = attention_reference(q, k, v, pattern=full(), bias=bias, scale=4**-0.5 / 0.6)
    torch.testing.assert_close(layer(x)[0], layer.o_proj(o.flatten(2)))


@torch.no_grad()
def test_a_factor_counts_from_the_beginning_of_its_document():
    torch.manual_seed(0)
    layer = build("attention(heads=2, temperature=log_slope(trained=4, b=0.5))", dim=8).double().eval()
    x = 5 * torch.randn(1, 12, 8, dtype=torch.float64)
    q, k, v = layer.project(x)
    s = torch.tensor([1 + 0.5 * math.log(max(n, 4) / 4) for n in range(1, 13)], dtype=torch.float64)
    expected = layer.o_proj(attention_reference(q * s[:, None, None], k, v).flatten(2))
    torch.testing.assert_close(layer(x)[0], expected)
    first, state = layer(x[:, :7])
    torch.testing.assert_close(torch.cat([first, layer(x[:, 7:], state)[0]], 1), expected)
    layer.train()
    torch.testing.assert_close(layer(x)[0], layer.o_proj(attention_reference(q, k, v).flatten(2)))


def test_expressions_name_temperatures():
    names = {
        "0.7": Constant(0.7),
        "constant(tau=0.7)": Constant(0.7),
        "log_scaling(trained=64, a=3)": LogScaling(64, 3),
        "log_slope(trained=64)": LogSlope(64),
        "none": None,
    }
    for text, expected in names.items():
        assert build(f"attention(heads=2, temperature={text})", dim=8).temperature == expected
    assert as_temperature(2) == Constant(2.0)


def test_a_model_keeps_its_temperature_in_its_file(tmp_path):
    from lengthwise.models.loading import load

    model = LanguageModel(9, 8, "attention(heads=2, position=none, temperature=log_scaling(trained=4)) + mlp")
    model.save(tmp_path)
    assert load(tmp_path).stack.layers[0].part.temperature == LogScaling(4)


@pytest.mark.parametrize("position", ["alibi", "t5"])
def test_a_factor_of_the_query_does_not_go_with_a_bias(position):
    with pytest.raises(InputError, match="multiplied into the queries"):
        build(f"attention(heads=2, position={position}, temperature=log_scaling(trained=4))", dim=8)(
            torch.randn(1, 3, 8)
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(0), "above 0"),
        (lambda: Constant(float("nan")), "above 0"),
        (lambda: LogScaling(0), "at least 1"),
        (lambda: LogScaling(4, a=0.5), "at least 1"),
        (lambda: LogSlope(4, b=-0.1), "at least 0"),
        (lambda: build("attention(temperature=log(4))", dim=8), "temperature"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
