"""The advice, the table and the page of a study of lengths, from invented numbers."""

import random
import re

import pytest

from lengthwise.comparison.length_advice import length_advice, length_table, recommendations
from lengthwise.comparison.length_report import length_report, looks, with_relative_time
from lengthwise.reports.page import render
from lengthwise.reports.records import Candidate, Measurement, Results, Settings, collect, mean_and_error

BITS = {("a @ b", 32): 2.5, ("a @ b", 128): 2.1, ("a @ b", 512): 2.09, ("<i>", 32): 2.4, ("<i>", 128): 2.4}
PAIRS = {32: 0.80, 128: 0.79, 512: 0.70}


def results(seeds=(0,)):
    noise = random.Random(0)
    shared = [noise.gauss(0, 0.3) for _ in range(32)]
    records = [Settings("2026-01-02", "lengthwise lengths", {"mode": "tokens", "parameters": "1k"}, {}, {}, {})]
    for (model, length), bits in BITS.items():
        key = f"{model} @ {length}"
        records.append(Candidate(key, "mamba", 16, 1000))
        for seed in seeds:

            def add(measure, value, at=None, key=key, seed=seed):
                blocks = tuple(value + common + noise.gauss(0, 0.01) for common in shared)
                mean, error = mean_and_error(blocks)
                records.append(Measurement(key, seed, measure, mean, at, error, blocks))

            add("bits_long", bits)
            add("bits_short", 2.5)
            add("context_gain", 2.5 - bits)
            add("pairs", PAIRS[length])
            for at in (32, 128, 512):
                if at <= length:
                    add("bits_at_context", bits + 1 / at, at)
            for measure, value in (("run_seconds", length / 10 + seed), ("updates", 500), ("windows", 4)):
                records.append(Measurement(key, seed, measure, float(value)))
    return collect(records)


def test_a_table_has_a_row_for_each_length_of_a_model():
    table = length_table(results((0, 1, 2)), "a @ b")
    assert [row.length for row in table.rows] == [32, 128, 512]
    assert [row.arrangement.updates for row in table.rows] == [500] * 3
    assert table.rows[0].scores["bits_long"] == pytest.approx(2.5, abs=0.1)
    assert table.losses == {"bits_long", "bits_short"}
    assert "context_gain" not in table.rows[0].scores


def test_each_model_is_recommended_its_own_length():
    found = recommendations(results(), 0.02)
    assert found["a @ b"].by_task == {"bits_long": 128, "bits_short": 32, "pairs": 32}
    assert (found["a @ b"].overall, found["a @ b"].agrees) == (128, True)
    assert found["<i>"].overall == 32


def test_the_advice_says_what_the_best_is_and_by_how_much():
    advice = length_advice(results(), 0.02)
    assert [item.purpose for item in advice[:3]] == ["Overall", "Overall", "Long text"]
    assert advice[0].pick == "a @ b @ 128"
    assert "26 %" not in advice[0].reason
    assert "25 % of the time of one at 512" in advice[0].reason
    assert re.search(r"512 is best, by 0\.0\d\d ± 0\.00\d", advice[2].reason)
    strict = length_advice(results(), 0.001)
    assert "no length is within 0.001" in strict[0].reason.lower()


def test_time_is_relative_to_the_longest_of_the_same_model_and_seed():
    told = with_relative_time(results((0, 1)))
    assert told.value("a @ b @ 512", "of_longest").value == 1
    assert told.seeds("a @ b @ 32", "of_longest")[1].value == pytest.approx(4.2 / 52.2)
    assert told.value("<i> @ 128", "of_longest").value == 1


def test_one_model_has_one_colour_and_each_length_its_dash():
    found = looks(results())
    assert len({style.colour for key, style in found.items() if key.startswith("a @ b")}) == 1
    assert len({style.dash for key, style in found.items() if key.startswith("a @ b")}) == 3
    assert found["a @ b @ 32"].colour != found["<i> @ 32"].colour


def test_the_page_shows_every_measure_and_no_markup_of_the_user():
    report = length_report(results(), length_advice(results(), 0.02), "Not complete.")
    assert [panel.key for panel in report.panels] == [
        "bits-long", "bits-short", "context-gain", "pairs", "run-seconds", "context",
    ]  # fmt: skip
    assert [view.button for view in report.panels[-1].views] == ["a @ b", "<i>"]
    text = render(report)
    assert "<i>" not in text.partition("<script")[0]
    assert "Not complete." in text


def test_results_without_measurements_still_make_a_page():
    assert "Which length" in render(length_report(Results(), []))
