import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.comparison.candidates import DEFAULT, Contender, contenders
from lengthwise.comparison.width import TOLERANCE, parameters, solve, solve_all, solve_width
from lengthwise.errors import InputError
from lengthwise.models.language_model import LanguageModel


def test_counting_needs_no_memory_and_is_right():
    model = LanguageModel(vocab_size=256, dim=32, layers="2*(attention + swiglu)")
    assert parameters("2*(attention + swiglu)", 32, 256, "rope") == sum(p.numel() for p in model.parameters())
    assert parameters("100*(attention + swiglu)", 8192, 256, "rope") > 5 * 10**10


@pytest.mark.parametrize("target", [150_000, 650_000, 5_000_000])
def test_the_default_candidates_agree_within_five_percent(target):
    counts = []
    for layers, dim in solve_all(DEFAULT, target, 256, "rope"):
        counts.append(parameters(layers, dim, 256, "rope"))
    assert max(counts) / min(counts) <= 1.05
    assert counts[0] == pytest.approx(target, rel=0.13)


@settings(max_examples=6, deadline=None)
@given(st.integers(3_000_000, 10**8))
def test_any_target_is_met_within_the_tolerance(target):
    dim = solve_width("2*(attention + swiglu)", target, 256, "rope")
    assert abs(parameters("2*(attention + swiglu)", dim, 256, "rope") / target - 1) <= TOLERANCE


def test_heads_that_are_given_divide_the_width():
    assert solve_width("2*(attention(heads=6) + mlp)", 400_000, 256, "rope") % 6 == 0


def test_a_typo_is_reported_as_such_and_not_as_a_width():
    with pytest.raises(InputError, match="did you mean attention"):
        solve_width("2*(atention + swiglu)", 400_000, 256, "rope")


def test_too_few_parameters_are_an_error_that_says_what_can_be_had():
    with pytest.raises(InputError, match="the nearest is"):
        solve_all(contenders(["12*(attention + swiglu)"], []), 10, 256, "rope")


def test_a_free_depth_gives_a_usual_width():
    layers, dim = solve(Contender("deep", "5*(attention + mlp)", flexible=True), 650_000, 256, "rope")
    assert 96 <= dim <= 160
    assert layers != "5*(attention + mlp)"


def test_counting_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    parameters("attention", 36, 256, "rope")
    assert torch.equal(before, torch.get_rng_state())
