"""The benchmarks of what a token decoded alone passes through, at sizes that take a moment."""

from lengthwise.benches import one_token as benches


def test_rows_name_their_peers_and_limits():
    rows = [*benches.linear(shapes=((200, 300), (300, 200)), layers=2, large=300), *benches.rms_norm(dim=16, calls=2)]
    assert [set(row.ratios) for row in rows] == [{"functional.linear"}] * 2 + [{"functional.rms_norm"}]
    assert all(row.seconds > 0 and row.limit > 0 for row in rows)


def test_attention_is_compared_at_each_cache():
    rows = list(benches.attention(caches=((4, 2, 30), (2, 2, 50)), width=8, numbers=1000))
    assert [set(row.ratios) for row in rows] == [{"scaled_dot_product_attention"}] * 2
    assert all(row.seconds > 0 and row.limit > 0 for row in rows)
