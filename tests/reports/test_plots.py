import json
import re

import plotly.graph_objects as go
import pytest

from lengthwise.reports.plots import panels
from lengthwise.reports.records import Results, collect
from tests.reports.example_results import BITS, example_results


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_every_panel_is_a_valid_figure_of_all_candidates(seeds):
    drawn = panels(example_results(seeds))
    keys = [panel.key for panel in drawn]
    assert keys == ["quality", "context", "recall", "decoding", "state", "memory", "prefill", "training"]
    for panel in drawn:
        for view in panel.views:
            figure = go.Figure(json.loads(json.dumps(view.figure, allow_nan=False)))
            assert {trace.name for trace in figure.data} - {""} == set(BITS)
            assert view.takeaway


def test_a_candidate_has_one_colour_everywhere():
    colours: dict[str, set[str]] = {}
    for panel in panels(example_results()):
        for view in panel.views:
            for trace in view.figure["data"]:
                colour = trace.get("marker", trace.get("line", {})).get("color")
                colours.setdefault(trace["name"], set()).add(colour)
    assert all(len(found) == 1 for name, found in colours.items() if name)
    assert len({next(iter(c)) for name, c in colours.items() if name}) == len(BITS)


def test_lengths_are_on_log_axes():
    for panel in panels(example_results()):
        if panel.key != "training":
            assert all(view.figure["layout"]["xaxis"]["type"] == "log" for view in panel.views)


def test_the_takeaways_say_what_the_numbers_say():
    said = {panel.key: panel.views[0].takeaway for panel in panels(example_results())}
    assert re.search(r"[Ww]orse [a-z ]*: softmax \(\+0\.4\d\) bits", said["context"])
    assert (
        said["state"] == "From 1K to 4K tokens the state of one sequence grows 4.0× for softmax and 1.00× for window."
    )
    assert "1K tokens back softmax saves 0." in said["recall"]


def test_nothing_measured_draws_nothing():
    assert panels(Results()) == []


def test_partial_results_draw_what_is_there():
    whole = example_results()
    training_only = collect([whole.settings, *whole.candidates.values(), *whole.training])
    assert [panel.key for panel in panels(training_only)] == ["training"]
