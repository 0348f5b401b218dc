import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.reports.style import log_axis, round_ticks, spread, thinned


@given(st.lists(st.floats(0, 300), min_size=1, max_size=10))
def test_labels_never_touch(heights):
    placed = sorted(spread(heights, 16))
    assert all(b - a >= 16 - 1e-6 for a, b in pairwise(placed))


@given(st.lists(st.floats(0, 280), min_size=1, max_size=10))
def test_labels_stay_below_the_top_and_apart(heights):
    placed = sorted(spread(heights, 16, 280))
    assert placed[-1] <= 280
    assert all(b - a >= 16 - 1e-6 for a, b in pairwise(placed))


def test_labels_that_are_apart_stay():
    assert spread([10.0, 100.0, 50.0], 16) == [10.0, 100.0, 50.0]


@given(st.floats(-9, 9), st.floats(0.25, 8))
def test_a_log_axis_has_a_few_ticks_inside(low, extent):
    ticks = round_ticks(low, low + extent)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-9 <= math.log10(t) <= low + extent + 1e-9 for t in ticks)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.01), (3e-4, 9e-4), (1e3, 1e9)])
def test_axes_hold_all_values(low, high):
    axis = log_axis([low, high], "seconds", str)
    assert axis["range"][0] < math.log10(low) < math.log10(high) < axis["range"][1]


def test_thinned_ticks_keep_the_last():
    assert thinned([16, 64, 128, 256, 512, 1024], 0.5)[-1] == 1024
