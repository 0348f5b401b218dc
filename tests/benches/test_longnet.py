"""The benchmarks of dilated attention, at a size that takes a moment."""

from lengthwise.benches import longnet as benches
from lengthwise.systems.longnet import entries


def test_rows_name_what_was_measured_against_what(monkeypatch):
    sizes = {
        "HEADS": 2,
        "HEAD_DIM": 4,
        "SEGMENTS": (8, 16),
        "DILATIONS": (1, 2),
        "LENGTHS": (16, 32, 64),
        "PAPER": {"segments": (8, 16), "dilations": (1, 2)},
        "PAPER_LENGTHS": (16, 32),
    }
    for name, size in sizes.items():
        monkeypatch.setattr(benches, name, size)
    monkeypatch.setattr(benches, "matmul_rate", lambda: 1e13)
    rows = list(benches.longnet())
    assert len(rows) == 4 * 3 + 1 + 1 + 2
    assert all(row.seconds > 0 for row in rows)
    assert [list(row.ratios) for row in rows[:3]] == [[], ["a token at L 16"], ["a token at L 16"]]
    assert all(0 < row.limit < 1 for row in rows[:6])
    assert "bytes a token at L 64" in rows[13].note


def test_arithmetic_counts_what_is_seen():
    geometry = (8, 20), (1, 3)
    assert benches.arithmetic(*geometry, 53, 6, 5) == 4 * 5 * 6 * entries(geometry, 53, 6)
