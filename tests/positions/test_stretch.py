"""Positions of a trained model changed for a while."""

import math

import pytest
import torch

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.positions import RoPE
from lengthwise.positions.stretch import SCALINGS, end_of, rotary, stretched
from lengthwise.positions.temperature import Constant

LAYERS = "2*(attention(heads=2) + mlp)"


def model(position: str):
    torch.manual_seed(0)
    built = lw.LanguageModel(vocab_size=64, dim=32, layers=LAYERS, position=position).eval()
    for p in built.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return built


def logits(built, tokens):
    with torch.no_grad():
        return built(tokens)[0]


@pytest.fixture
def tokens():
    return torch.randint(0, 64, (2, 48), generator=torch.Generator().manual_seed(1))


POSITIONS = ("rope", "rope(fraction=0.5)", "alibi", "t5(heads=2)", "sinusoidal", "none", "learned")
APPLIES = [
    ("interpolation", "rope", True),
    ("interpolation", "sinusoidal", True),
    ("interpolation", "alibi", False),
    ("interpolation", "none", False),
    ("ntk", "rope", True),
    ("ntk", "sinusoidal", False),
    ("temperature", "rope", True),
    ("temperature", "t5(heads=2)", True),
    ("temperature", "none", True),
]


@pytest.mark.parametrize(("how", "position", "applies"), APPLIES)
def test_a_scaling_knows_the_positions_that_it_is_for(how, position, applies):
    assert SCALINGS[how].applies(model(position)) is applies


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("how", SCALINGS)
def test_it_changes_what_is_beyond_the_trained_length_and_is_undone(how, position, tokens):
    built = model(position)
    before = logits(built, tokens)
    if how != "none" and not SCALINGS[how].applies(built):
        with pytest.raises(InputError, match="this model has none"), stretched(built, how, 16, 48):
            pass
        return
    with stretched(built, how, 16, 16):
        assert torch.equal(logits(built, tokens[:, :16]), logits(model(position), tokens[:, :16]))
    with stretched(built, how, 16, 48):
        during = logits(built, tokens)
    assert torch.equal(during, before) == (how == "none")
    assert torch.equal(logits(built, tokens), before), "the model is as it was"


@pytest.mark.parametrize("part", ["chunked_attention(heads=2, chunk=8)", "dilated_attention(heads=2)"])
def test_attention_that_knows_no_temperature_is_not_taken_for_sharpened(part):
    assert not SCALINGS["temperature"].applies(lw.LanguageModel(11, 8, f"{part} + mlp"))


def test_it_is_undone_where_the_measurement_fails(tokens):
    built = model("rope")
    before = logits(built, tokens)
    with pytest.raises(RuntimeError), stretched(built, "ntk", 16, 48):
        raise RuntimeError
    assert torch.equal(logits(built, tokens), before)


def test_interpolation_is_rope_with_a_scale(tokens):
    built, scaled = model("rope"), model("rope(scale=3)")
    scaled.load_state_dict(built.state_dict())
    with stretched(built, "interpolation", 16, 48):
        assert torch.equal(logits(built, tokens), logits(scaled, tokens))


def test_interpolated_sines_are_read_at_positions_in_between(tokens):
    built = model("sinusoidal")
    with stretched(built, "interpolation", 16, 48):
        x = built.position.embed(torch.zeros(1, 48, 32), torch.arange(48))
    at_integers = built.position.embed(torch.zeros(1, 16, 32), torch.arange(16))
    assert torch.equal(x[:, ::3], at_integers)


def test_ntk_slows_the_slowest_pair_by_the_factor_and_leaves_the_fastest():
    built = model("rope")
    (position, width), *others = rotary(built)
    assert not others, "layers that share a position are stretched once"
    base = position.base
    with stretched(built, "ntk", 16, 64):
        slowest = 1 - 2 / width
        assert position.base**-slowest == pytest.approx(base**-slowest / 4)
    assert position.base == base


def test_turned_channels_count_and_not_the_whole_head():
    (position, turned), *_ = rotary(model("rope(fraction=0.5)"))
    assert isinstance(position, RoPE)
    assert turned == 8


def test_temperature_beside_a_bias_is_one_number_for_all_queries():
    built = model("alibi")
    part = next(m for m in built.modules() if hasattr(m, "temperature"))
    with stretched(built, "temperature", 16, 64):
        assert isinstance(part.temperature, Constant)
        assert part.temperature.tau == pytest.approx(math.log(17) / math.log(65))
    assert part.temperature is None


def test_temperature_sharpens_only_queries_beyond_the_trained_length(tokens):
    built = model("none")
    before = logits(built, tokens)
    with stretched(built, "temperature", 16, 48):
        during = logits(built, tokens)
    # what a query sees decides, so the first 16 are as they were, up to another order of sums
    torch.testing.assert_close(during[:, :16], before[:, :16], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(during[:, 20:], before[:, 20:], rtol=1e-3)


@pytest.mark.parametrize(
    ("position", "end"),
    [
        ("learned(length=40)", 40),
        ("grid(width=8, height=4)", 32),
        ("seqpe(heads=2, width=8, positions=30)", 30),
        ("seqpe(heads=2, width=8, positions=9, grid=4, use=input_add)", 36),
        ("randomised(rope, length=64, longest=24)", 24),
        ("randomised(learned(length=64), length=64)", 16),
    ],
)
def test_positions_end_where_the_model_says_so(position, end):
    built = model(position).eval()
    assert end_of(built) == end
    text = torch.arange(end + 1)[None] % 32
    built(text[:, :-1])
    with pytest.raises(InputError):
        built(text)


def test_formulas_do_not_end():
    assert end_of(model("rope")) is None


@pytest.mark.parametrize(
    ("how", "trained", "length", "message"),
    [("ntkk", 16, 32, "did you mean ntk"), ("ntk", 0, 32, "at least 1"), ("ntk", 16, 0, "at least 1")],
)
def test_bad_input(how, trained, length, message):
    with pytest.raises(InputError, match=message), stretched(model("rope"), how, trained, length):
        pass
