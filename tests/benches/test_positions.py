from __future__ import annotations

import pytest

from lengthwise.benches import positions as benches
from lengthwise.positions import POSITIONS


def test_every_encoding_that_acts_in_a_layer_is_timed(monkeypatch):
    for name, size in {"DIM": 16, "HEADS": 2, "LENGTH": 24, "CONTEXT": 24}.items():
        monkeypatch.setattr(benches, name, size)
    monkeypatch.setitem(benches.EXPRESSIONS, "randomised", "randomised(rope, length=512)")
    monkeypatch.setitem(benches.EXPRESSIONS, "seqpe", "seqpe(width=16)")
    rows = list(benches.positions())
    assert len(rows) == 2 * len(benches.encodings())
    assert {"alibi", "t5", "fire", "cable", "rope"} <= set(benches.encodings()) <= set(POSITIONS)
    for row in rows:
        assert row.seconds > 0
        assert row.limit > 0
        assert ("no position" in row.ratios) == ("with none" not in row.name)


def test_relative_attention_needs_less_memory_than_its_direct_form():
    (row,) = benches.relative_attention(length=128, compared=256)
    assert row.seconds > 0
    assert float(row.note.split()[2]) > 1


@pytest.mark.parametrize("form", [benches.relative, benches.direct])
def test_both_forms_are_one_function(form):
    given = benches.inputs(12, 2, 8)
    expected = benches.direct(*given)
    assert (form(*given) - expected).abs().max() < 1e-5
