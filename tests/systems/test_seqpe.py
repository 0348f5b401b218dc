"""The pieces of the experiment with sequential positions, at tiny sizes."""

import pytest
import torch

from lengthwise.positions.seqpe import SeqPE
from lengthwise.systems import seqpe
from lengthwise.systems.experiments import train_bytes


@pytest.mark.parametrize("name", seqpe.VARIANTS)
def test_what_is_measured(name):
    model = train_bytes(
        "1*(attention(heads=4) + mlp)", seqpe.VARIANTS[name], seed=10, dim=16, length=8, batch=2, steps=2
    )
    found = seqpe.measures(model)
    assert all(torch.tensor(value).isfinite() for value in found.values())
    assert ("correlation" in found) == (name != seqpe.ROPE)


def test_ranks():
    assert seqpe.ranks(torch.tensor([30.0, 10.0, 20.0, 10.0])).tolist() == [4, 1.5, 3, 1.5]
    x = torch.linspace(-1, 1, 50)
    assert seqpe.rank_correlation(x, x**3) == pytest.approx(1)
    assert seqpe.rank_correlation(x, -x.exp()) == pytest.approx(-1)
    assert abs(seqpe.rank_correlation(x, x**2)) < 1e-6


def test_similarity_that_falls_with_distance_correlates():
    position = SeqPE(8, heads=2, positions=1000)
    turn = torch.tensor(0.02)

    def circle(positions):
        angle = positions * turn
        return torch.cat([angle.cos(), angle.sin()], -1)

    position.encodings.encoder.forward = circle
    assert seqpe.nearness(position) > 0.99


def test_the_figures():
    found = {
        name: {"nats": 2.0, "256": 0.1, "512": rise, "correlation": 0.8}
        for name, rise in ((seqpe.WITH, 0.3), (seqpe.WITHOUT, 0.6), (seqpe.ROPE, 0.7))
    }
    ratio, difference, correlation, *rest = seqpe.compared(found, 3)
    assert (ratio.holds, difference.holds, correlation.holds) == (True, True, True)
    assert ratio.measured == pytest.approx(0.5)
    assert all(figure.holds is None for figure in rest)
