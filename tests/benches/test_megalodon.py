"""The benchmarks of Megalodon, at a size that takes a moment."""

import pytest

from lengthwise.benches import megalodon as benches
from lengthwise.mixers.megalodon import Megalodon


def test_rows_name_what_was_measured_against_what(monkeypatch):
    for name, size in {"LENGTH": 24, "DIM": 64, "CHUNKS": (8,)}.items():
        monkeypatch.setattr(benches, name, size)
    monkeypatch.setattr(benches, "matmul_rate", lambda: 1e13)
    forward, both, average, norm = benches.megalodon()
    assert 0 < both.limit < 1
    assert 0 < forward.limit < 1
    assert set(average.ratios) == {"a convolution by Fourier transforms"}
    assert set(norm.ratios) == {"by doubling", "layer_norm"}
    assert all(row.seconds > 0 for row in (forward, both, average, norm))


@pytest.mark.parametrize(("length", "seen"), [(8, 36), (16, 72), (19, 78)])
def test_arithmetic_counts_the_keys_that_are_seen(length, seen):
    mixer = Megalodon(16, chunk=8, z_dim=4, value_dim=32)
    projections = length * 16 * (4 + 32 + 16 + 32 + 32)
    assert benches.arithmetic(mixer, length) == 2 * (projections + seen * (4 + 32))
