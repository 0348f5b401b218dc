import pytest
import torch

from lengthwise.ops.diagonals import diagonals

SIZES = [(1, 1), (1, 5), (5, 1), (4, 7), (7, 4)]


@pytest.fixture(params=["kernel", "operations"])
def form(request, monkeypatch):
    """The kernel, and the operations that other devices and compiled graphs run in its place."""
    if request.param == "operations":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.delattr("lengthwise.ops.numba_diagonals.add_diagonals")


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("form")
def test_diagonals_are_summed(size, heads):
    queries, keys = size
    x = torch.randn(2, keys, queries, 3, dtype=torch.float64).transpose(1, 3)
    expected = torch.zeros(3, queries + keys - 1, dtype=torch.float64)
    for i in range(queries):
        for j in range(keys):
            expected[:, j - i + queries - 1] += x[:, :, i, j].sum(0)
    torch.testing.assert_close(diagonals(x, heads), expected if heads == 3 else expected.sum(0, keepdim=True))
