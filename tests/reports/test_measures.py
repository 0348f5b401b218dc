from hypothesis import given
from hypothesis import strategies as st

from lengthwise.reports.measures import MEASURES, Column, growth_factor, pareto_front, summary_columns
from tests.reports.example_results import example_results


def test_the_summary_takes_the_longest_length_that_all_reached():
    at = {col.measure.key: col.at for col in summary_columns(example_results())}
    assert at["decode_seconds"] == 4096
    assert at["train_peak_bytes"] == 512
    assert at["recall"] == 256, "the greatest distance within the trained context"


def test_leaders_are_the_best_and_what_cannot_be_told_apart():
    results = example_results()
    bits = Column(MEASURES["bits_per_byte"], None, "")
    assert bits.ranked(results)[0] == "state"
    assert set(bits.leaders(results)) == {"state", "<b>odd & name</b>"}
    rate = Column(MEASURES["train_rate"], None, "")
    assert rate.leaders(results) == ["<b>odd & name</b>"], "more tokens per second are better"


def test_growth_is_the_factor_from_the_first_to_the_last_length():
    assert growth_factor(example_results(), "state_bytes", "softmax") == (1024, 4096, 4.0)
    assert growth_factor(example_results(), "state_bytes", "state") == (1024, 16384, 1.0)


points = st.dictionaries(st.text(max_size=3), st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=1, max_size=8)


@given(points)
def test_nobody_beats_the_front_and_the_front_beats_everybody_else(points):
    front = pareto_front(points)
    for name, (cost, loss) in points.items():
        at_least_as_good = [f for f in front if points[f][0] <= cost and points[f][1] <= loss]
        assert at_least_as_good
        if name in front:
            assert all(points[f] == (cost, loss) for f in at_least_as_good)
