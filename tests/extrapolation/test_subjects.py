import pytest

from lengthwise.extrapolation.subjects import completed
from lengthwise.models.expression import parse


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("rope", "rope"),
        ("rope(base=500000)", "rope(base=500000)"),
        ("t5", "t5(heads=4)"),
        ("t5(heads=2, buckets=16)", "t5(heads=2, buckets=16)"),
        ("learned", "learned(length=64)"),
        ("learned(length=512)", "learned(length=512)"),
        ("fire", "fire(heads=4, length=32)"),
        ("randomised(t5)", "randomised(t5(heads=4))"),
        ("no_such_position", "no_such_position"),
    ],
)
def test_a_position_is_given_what_it_asks_for(given, whole):
    assert str(completed(parse(given), heads=4, trained=64)) == whole
