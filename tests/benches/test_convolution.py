from lengthwise.benches import convolution


def test_rows_against_the_transforms_and_attention(monkeypatch):
    monkeypatch.setattr(convolution, "LENGTHS", (16, 33))
    rows = list(convolution.long_convolution())
    assert [row.name for row in rows] == [
        f"long_convolution {kind}, L {length}, 64 channels"
        for length in (16, 33)
        for kind in ("forward", "forward and backward")
    ]
    for row in rows:
        assert row.seconds > 0
        assert set(row.ratios) == {convolution.TRANSFORMS, convolution.ATTENTION}
        assert all(ratio > 0 for ratio in row.ratios.values())
