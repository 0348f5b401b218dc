"""The pieces of the experiment with collinear attention, at tiny sizes."""

import pytest
import torch

from lengthwise.mixers.coca_attention import CoCAAttention
from lengthwise.models.build import build
from lengthwise.systems import coca
from lengthwise.systems.experiments import parameters, train_bytes


@pytest.mark.parametrize("name", coca.LAYERS)
def test_what_is_measured(name):
    model = train_bytes(coca.LAYERS[name].replace("4*", "1*"), seed=10, dim=16, length=8, batch=2, steps=2)
    found = coca.measures(model)
    assert all(torch.tensor(value).isfinite() for value in found.values())
    assert len(found) == 8
    assert found["anomaly"] == 0 if name == "collinear" else 0.3 < found["anomaly"] < 0.7


def test_variants_have_equally_many_parameters():
    ours, plain = (build(layers, dim=64) for layers in coca.LAYERS.values())
    assert parameters(ours) == parameters(plain)


def test_a_plane_is_raised_where_the_key_lies_behind_the_query():
    layer = build("attention(heads=1, position=rope)", dim=2)
    layer.q_proj.weight.data = torch.eye(2)
    x = torch.tensor([[[1.0, 0.0]]])
    for angle, raised in ((0.6, True), (0.4, False), (-0.6, False)):
        turned = torch.tensor(angle)
        layer.k_proj.weight.data = torch.stack([turned.cos(), turned.sin()])[:, None] * torch.ones(1, 2)
        assert bool(coca.raises(layer, x)) is raised


def test_the_figures():
    found = {
        name: {"anomaly": share, "rise": rise, "at context 64": 2.0}
        for name, share, rise in (("collinear", 0.0, 0.6), ("rotary", 0.5, 0.7))
    }
    none, some, ratio, *rest = coca.compared(found, 3)
    assert (none.holds, some.holds, ratio.holds) == (True, True, True)
    assert ratio.measured == pytest.approx(0.6 / 0.7)
    assert all(figure.holds is None for figure in rest)


def test_collinear_attention_is_what_is_trained():
    assert any(isinstance(part, CoCAAttention) for part in build(coca.LAYERS["collinear"], dim=64).modules())
