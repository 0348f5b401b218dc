import torch

from lengthwise.benches import convolution
from lengthwise.ops.dilated_convolution import dilated_convolution


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


def test_the_librarys_convolution_is_the_same():
    x, weight, bias = torch.randn(2, 20, 5), torch.randn(5, 3), torch.randn(5)
    theirs = convolution.library_convolution(x, weight, bias, dilation=4)
    torch.testing.assert_close(dilated_convolution(x, weight, bias, dilation=4)[0], theirs, rtol=1e-5, atol=1e-5)


def test_rows_of_every_dilation(monkeypatch):
    monkeypatch.setattr(convolution, "DILATIONS", (1, 9))
    rows = list(convolution.dilated_convolution(length=50, channels=4, kernel=3))
    assert [row.name for row in rows] == [
        f"dilated_convolution, L 50, 4 channels, kernel 3, dilation {dilation}, {kind}"
        for dilation in (1, 9)
        for kind in ("forward", "forward and backward")
    ]
    assert all(row.seconds > 0 and row.ratios["conv1d"] > 0 and row.limit > 0 for row in rows)
