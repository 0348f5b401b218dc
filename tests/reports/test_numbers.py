import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.reports.numbers import (
    parse_count,
    parse_duration,
    parse_size,
    show_bytes,
    show_count,
    show_length,
    show_ratio,
    show_seconds,
    significant,
)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("1.5h", 5400), ("2 min", 120), (".5m", 30)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


def test_counts_and_sizes():
    assert (parse_count("650k"), parse_count("3M"), parse_count("12")) == (650_000, 3_000_000, 12)
    assert (parse_size("4GB"), parse_size("512 mb")) == (4 * 2**30, 512 * 2**20)


@pytest.mark.parametrize("parse", [parse_duration, parse_count, parse_size])
@pytest.mark.parametrize("text", ["", "m", "-5m", "5x", "0s", "0", "nan", "1e400k", "five"])
def test_what_is_no_number_is_an_input_error(parse, text):
    with pytest.raises(InputError):
        parse(text)


@given(st.text(max_size=12))
def test_parsing_gives_a_number_or_an_input_error(text):
    for parse in (parse_duration, parse_count, parse_size):
        with contextlib.suppress(InputError):
            assert parse(text) >= 0


def test_numbers_as_people_read_them():
    assert [show_length(n) for n in (100, 512, 1024, 65536, 3 * 2**20)] == ["100", "512", "1K", "64K", "3M"]
    assert [show_bytes(n) for n in (12, 2048, 5.5 * 2**20)] == ["12.0 B", "2.00 KB", "5.50 MB"]
    assert [show_seconds(s) for s in (1.5e-5, 0.0021, 2, 90)] == ["15.0 µs", "2.10 ms", "2.00 s", "1.50 min"]
    assert [show_count(n) for n in (812, 12_345, 4.1e6)] == ["812", "12.3k", "4.10M"]
    assert [show_ratio(r) for r in (1.04, 12.3)] == ["1.04×", "12×"]


@given(st.floats(1e-9, 1e15))
def test_three_digits_are_within_half_a_percent(value):
    assert float(significant(value).replace(",", "")) == pytest.approx(value, rel=0.0051)
