import dataclasses
import re

from lengthwise.comparison.recommendation import recommend
from lengthwise.reports.records import Results, collect
from tests.reports.example_results import example_results


def advice(results: Results) -> dict[str, tuple[str, str]]:
    return {item.purpose: (item.pick, item.reason) for item in recommend(results)}


def without(results: Results, name: str) -> Results:
    kept = [m for m in results.measurements if m.candidate != name]
    return collect([results.settings, *results.candidates.values(), *kept])


def test_the_best_is_named_with_those_that_cannot_be_told_apart():
    pick, reason = advice(example_results())["For quality"]
    assert pick == "state"
    assert "<b>odd & name</b> can't be told apart" in reason
    assert "Of these, state decodes fastest" in reason


def test_a_clear_best_is_named_with_its_lead_and_the_error():
    pick, reason = advice(without(example_results(), "<b>odd & name</b>"))["For quality"]
    assert pick == "state"
    assert re.search(r"0\.(19|20|21) ± 0\.0\d fewer", reason)
    assert "than softmax, the next best" in reason


def test_the_smallest_state_is_named_with_the_price_in_quality():
    pick, reason = advice(example_results())["For memory"]
    assert pick == "window"
    assert "32.0 KB of state after 4K tokens" in reason
    assert re.search(r"\. window gives up 0\.(29|30|31) ± 0\.0\d bits", reason)


def test_a_model_that_breaks_down_beyond_the_trained_length_is_not_for_long_contexts():
    results = example_results()
    better = [
        dataclasses.replace(m, value=m.value - 0.9, blocks=tuple(b - 0.9 for b in m.blocks))
        if (m.candidate, m.measure) == ("softmax", "bits_at_context")
        else m
        for m in results.measurements
    ]
    pick, reason = advice(collect([results.settings, *results.candidates.values(), *better]))["For long contexts"]
    assert pick in ("state", "<b>odd & name</b>")
    assert "softmax got worse beyond the trained length" in reason


def test_a_single_candidate_is_compared_with_nothing():
    results = example_results()
    for name in ("softmax", "window", "<b>odd & name</b>"):
        results = without(results, name)
    pick, reason = advice(results)["For quality"]
    assert pick == "state"
    assert "nothing to compare it with" in reason


def test_nothing_measured_gives_no_advice():
    assert recommend(Results()) == []


def test_partial_results_give_partial_advice():
    results = example_results()
    kept = [m for m in results.measurements if m.measure == "bits_per_byte"]
    found = advice(collect([results.settings, *results.candidates.values(), *kept]))
    assert list(found) == ["For quality"]


def test_of_states_about_as_small_the_better_model_is_taken():
    results = example_results()
    shrunk = [
        dataclasses.replace(m, value=1.2 * 2.0**15) if (m.candidate, m.measure) == ("state", "state_bytes") else m
        for m in results.measurements
    ]
    pick, reason = advice(collect([results.settings, *results.candidates.values(), *shrunk]))["For memory"]
    assert pick == "state"
    assert "about as little as window" in reason
