"""The benchmarks of the matrix-state ops, at a size that takes a moment."""

from lengthwise.benches import matrix_state


def test_rows_name_what_was_measured_against_what(monkeypatch):
    monkeypatch.setattr(matrix_state, "LENGTH", 32)
    monkeypatch.setattr(matrix_state, "matmul_rate", lambda: 1e12)
    for bench, count in ((matrix_state.linear_attention, 8), (matrix_state.delta_rule, 2)):
        rows = list(bench())
        assert len(rows) == count
        assert all(row.seconds > 0 and row.ratios["reference"] > 0 and 0 < row.limit < 1 for row in rows)


def test_arithmetic_counts_two_products_backward_for_each_forward():
    forward, both = matrix_state.delta_rule_arithmetic(64, 64)
    inverse = 64**2 / 3
    assert forward - inverse == 2 * 64 * 64 * 7
    assert both - forward == 2 * 64 * 64 * 13


def test_what_heads_share_is_counted_once():
    alone, shared = (matrix_state.linear_attention_arithmetic(128, 128, 64, sharing) for sharing in (1, 16))
    assert alone[0] - shared[0] == 2 * 128 * 128 * 15 / 16
    assert shared[1] == 3 * shared[0]
