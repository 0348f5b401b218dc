import io

import pytest
from rich.console import Console

from lengthwise.comparison import progress
from lengthwise.comparison.progress import Timeline


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def left(timeline):
    return timeline.progress.tasks[0].fields["left"]


def test_nothing_is_said_of_the_time_left_until_it_is_known(clock):
    timeline = Timeline(Console(file=io.StringIO()), None)
    timeline.tell("timing a step")
    assert left(timeline) == ""
    clock[0] = 30.0
    timeline.plan(100.0)
    timeline.begin("training", 80.0)
    assert left(timeline) == "about 1:40 left"


def test_the_time_left_follows_the_pace_of_the_run(clock):
    timeline = Timeline(Console(file=io.StringIO()), 100.0)
    timeline.begin("training", 80.0)
    clock[0] = 5.0
    timeline.tell("training", 0.05)
    assert left(timeline) == "about 1:36 left"  # too early to judge
    clock[0] = 80.0
    timeline.tell("training", 0.5)
    assert left(timeline) == "about 2:00 left"  # twice as slow as planned, and 60 seconds are left of the plan
    timeline.begin("scoring", 20.0)
    clock[0] = 200.0
    timeline.tell("scoring")
    assert left(timeline) == "about 0:00 left"  # never below
