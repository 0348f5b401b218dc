"""The benchmarks of mixers against length, at lengths that take a moment."""

import pytest

from lengthwise.benches import mixers


@pytest.mark.parametrize("expression", mixers.LINEAR)
def test_time_against_length(expression, monkeypatch):
    monkeypatch.setattr(mixers, "LENGTHS", (8, 16, 32))
    assert "time grows as L^" in mixers.against_length(expression, dim=64).note


@pytest.mark.parametrize("expression", mixers.RECURRENT)
def test_a_token_after_contexts(expression, monkeypatch):
    monkeypatch.setattr(mixers, "CONTEXTS", (8, 32))
    monkeypatch.setattr(mixers, "TOKENS", 2)
    row = mixers.one_token(expression, dim=64, layers=2)
    assert row.ratios["after 8"] > 0
    assert row.limit > 0
    assert "tokens per second" in row.note


@pytest.mark.parametrize("expression", mixers.LINEAR)
def test_half_precision(expression):
    assert mixers.in_half_precision(expression, dim=64, length=8).ratios["float32"] > 0


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_slope_finds_the_exponent(power):
    assert mixers.slope([1.0, 2.0, 3.0], [power * x + 4 for x in (1.0, 2.0, 3.0)]) == pytest.approx(power)
