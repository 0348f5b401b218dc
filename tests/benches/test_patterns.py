from __future__ import annotations

import pytest

from lengthwise.benches import patterns as benches


def test_rows_of_small_sizes():
    rows = list(benches.patterns(300, 1))
    assert rows[0].name.split(", ")[1] == "causal"
    assert len(rows) == len(benches.PATTERNS)
    for row in rows:
        assert row.seconds > 0
        assert all(ratio > 0 for ratio in row.ratios.values())
        assert row.limit > 0


def test_a_layer_of_longformer_against_transformers():
    pytest.importorskip("transformers")
    (row,) = benches.longformer(512, 32, 2, 1)
    assert row.ratios["transformers"] > 0
