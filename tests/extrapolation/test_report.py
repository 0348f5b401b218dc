import json
import re

import plotly.graph_objects as go
import pytest

from lengthwise.extrapolation.columns import rows, summary_columns, usable
from lengthwise.extrapolation.plots import panels
from lengthwise.extrapolation.recommendation import recommend
from lengthwise.extrapolation.report import as_json, extrapolation_report
from lengthwise.extrapolation.series import Series, beside, looks, series_of
from lengthwise.reports.page import render, write_report
from lengthwise.reports.records import Results, collect
from tests.extrapolation.example_study import ENDS, SERIES, example_study
from tests.reports.browser import drawn_plots, errors_of, wait_until

ALIBI = "<i>alibi</i>"


@pytest.fixture(scope="module")
def study():
    return example_study()


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_every_panel_is_a_valid_figure_with_a_view_for_each_scaling(seeds):
    drawn = {panel.key: panel for panel in panels(example_study(seeds))}
    assert list(drawn) == ["context", "position", "recall", "training"]
    for key in ("context", "position", "recall"):
        assert [view.button for view in drawn[key].views] == ["as trained", "ntk", "temperature"]
        for view in drawn[key].views:
            figure = go.Figure(json.loads(json.dumps(view.figure, allow_nan=False)))
            assert figure.layout.xaxis.type == "log"
            assert view.takeaway
    assert {trace["name"] for trace in drawn["context"].views[1].figure["data"]} == {"rope", "rope + ntk"}
    level = [note["text"] for note in drawn["recall"].views[0].figure["layout"]["annotations"]]
    assert "chance" in level
    assert "trained length" in level


def test_a_model_has_one_colour_and_a_scaling_one_dash():
    look = looks(list(SERIES))
    assert look["rope"].colour == look["rope + ntk"].colour != look[ALIBI].colour
    assert len({look[name].dash for name in ("rope", "rope + ntk", f"{ALIBI} + temperature")}) == 3


def test_the_takeaways_say_what_the_numbers_say(study):
    said = {panel.key: panel.views[0].takeaway for panel in panels(study)}
    assert (
        said["context"]
        == f"Within 0.1 bits per byte of the trained length: {ALIBI} up to 256; rope and {ENDS} up to 64."
    )
    assert re.search(r"^Worse at the end .*: rope \(\+1.00\) bits", said["position"])
    assert said["recall"].startswith("Above chance: rope and <i>alibi</i> up to 64 tokens back.")


def test_usable_is_the_longest_context_up_to_which_nothing_breaks(study):
    assert [usable(study, name) for name in ("rope", "rope + ntk", ALIBI, ENDS)] == [64, 128, 256, 64]


def test_the_table_has_each_length_the_change_and_recall(study):
    columns = summary_columns(study)
    assert [c.heading for c in columns] == [
        "bits at 64", "bits at 128", "bits at 256", "change to 256", "usable up to", "recall at 64", "recall at 256",
    ]  # fmt: skip
    change = columns[3]
    assert change.value(study, "rope").value == pytest.approx(1.0, abs=0.05)
    assert set(change.leaders(study)) == {ALIBI, f"{ALIBI} + temperature"}
    assert change.value(study, ENDS) is None
    assert rows(study)[:2] in ([ALIBI, f"{ALIBI} + temperature"], [f"{ALIBI} + temperature", ALIBI])
    assert rows(study)[-1] == ENDS, "what doesn't get there comes last"


def test_the_advice_follows_from_the_numbers(study):
    advice = {a.purpose: a for a in recommend(study)}
    assert advice["For contexts of 256"].pick.startswith(ALIBI)
    assert "4.0× the trained length" in advice["For contexts of 256"].reason
    assert advice["Within the trained 64"].pick == ENDS
    assert advice["To stretch a trained model"].pick == "rope + ntk"
    assert re.search(r"takes 0\.8\d ± 0\.0\d bits per byte off rope", advice["To stretch a trained model"].reason)
    assert advice["For recall from far back"].pick == "rope + ntk"


def test_without_a_scaling_that_helps_none_is_recommended(study):
    kept = [m for m in study.measurements if m.candidate != "rope + ntk"]
    results = collect([study.settings, *study.candidates.values(), *kept])
    advice = {a.purpose: a for a in recommend(results)}
    assert advice["To stretch a trained model"].pick == ALIBI
    assert "No scaling clearly helps" in advice["To stretch a trained model"].reason


def test_names_of_series_come_apart_again():
    for series in (Series("rope"), Series("rope", "ntk"), Series("a + b"), Series("runs/a + ntk", "temperature")):
        assert series_of(series.name) == series
    assert beside(["a", "a + ntk", "b", "b + temperature"], "ntk") == ["a", "a + ntk"]


def test_plain_values_hold_every_curve(study):
    told = json.loads(json.dumps(as_json(extrapolation_report(study)), allow_nan=False))
    assert told["series"]["rope + ntk"]["scaling"] == "ntk"
    assert [p["at"] for p in told["series"]["rope"]["bits_per_byte"]] == [64, 128, 256]
    assert told["series"]["rope"]["usable_up_to"] == 64
    assert {s["reason"] for s in told["skipped"]} == {"its positions end at 64"}
    assert told["takeaways"]["context"]["ntk"]


def test_nothing_measured_makes_a_page():
    assert "<table" in render(extrapolation_report(Results()))


def test_in_a_browser_it_draws_switches_and_logs_no_error(browser, tmp_path, study):
    path = tmp_path / "report.html"
    write_report(path, extrapolation_report(study, "Not complete."))
    text = path.read_text()
    assert "<i>" not in text.partition("<script>")[0], "what the user wrote is text"
    browser.get(path.as_uri())
    assert wait_until(lambda: len(drawn_plots(browser)) == 4), f"only {drawn_plots(browser)} have drawn"
    names = "return document.querySelector('#panel-context .plot').data.map(t => t.name)"
    assert browser.execute_script(names) == ["rope", ALIBI, ENDS]
    browser.execute_script("document.querySelectorAll('#panel-context .views button')[1].click()")
    assert wait_until(lambda: browser.execute_script(names) == ["rope", "rope + ntk"])
    browser.execute_script("document.querySelector('.chips button').click()")
    faint = "return document.querySelector('#panel-context .plot').data.map(t => t.opacity)"
    assert wait_until(lambda: browser.execute_script(faint) == [1, 0.13])
    assert "its positions end at 64" in browser.find_element("css selector", ".left-out").text
    assert errors_of(browser) == []
