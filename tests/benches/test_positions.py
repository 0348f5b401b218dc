from __future__ import annotations

import pytest

from lengthwise.benches import positions as benches
from lengthwise.ops.attention import attention_reference
from lengthwise.ops.relative_content import relative_content_reference
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
    (row,) = benches.relative_attention(length=1024)
    assert row.seconds > 0
    words = row.note.split()
    assert float(words[words.index("times") - 1]) > 1


@pytest.mark.parametrize("form", [benches.relative, benches.direct])
def test_both_forms_are_one_function(form):
    q, k, v, table = given = benches.inputs(12, 2, 8)
    bias = relative_content_reference(q.transpose(1, 2), table, 12, 11) * 8**-0.5
    assert (form(*given) - attention_reference(q, k, v, bias=bias)).abs().max() < 1e-5
