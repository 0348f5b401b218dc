from __future__ import annotations

import pytest

from lengthwise.benches import content as bench


@pytest.mark.parametrize("trained", [False, True])
def test_rows_of_small_sizes(trained):
    rows = [*bench.routing(300, trained=trained), *bench.vcc(80, trained=trained)]
    assert len(rows) == 4
    assert all(row.seconds > 0 for row in rows[::2])
    assert all(len(row.ratios) == 1 for row in rows)
    assert ("backward" in rows[0].name) == trained


def test_a_choice_is_what_a_form_costs_beyond_its_attention():
    times = bench.Times(whole=3.0, alone=2.0, full=6.0)
    whole, choice = times.rows("form", "full")
    assert whole.ratios == {"full": 2.0}
    assert choice.seconds == 1.0
    assert choice.ratios == {"the work it saves": 4.0}
    assert choice.note == "0.25 of what it saves"
