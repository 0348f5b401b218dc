from functools import partial

import pytest
import torch

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.systems import mamba, selective_copying
from lengthwise.systems.mamba import TimeInvariantMamba
from lengthwise.systems.system import Run


@torch.no_grad()
def test_the_convolution_equals_the_recurrence():
    torch.manual_seed(0)
    layer = TimeInvariantMamba(6, state_dim=3).double()
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    step = torch.nn.functional.softplus(layer.step)[:, None]
    h, ys = torch.zeros(2, 12, 3, dtype=torch.float64), []
    for x_t in x.unbind(1):
        h = torch.exp(-step * layer.A_log.exp()) * h + step * layer.B * x_t[..., None]
        ys.append((layer.C * h).sum(-1) + layer.D * x_t)
    y, last = layer.recurrence(x, None, None)
    torch.testing.assert_close(y, torch.stack(ys, 1))
    torch.testing.assert_close(last, h)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 3, 19])
def test_the_baseline_goes_on_from_any_cut(cut):
    torch.manual_seed(0)
    layer = TimeInvariantMamba(6, state_dim=3).double()
    x = torch.randn(2, 20, 6, dtype=torch.float64)
    first, state = layer(x[:, :cut])
    second, _ = layer(x[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), layer(x)[0])


def test_the_baseline_refuses_packed_documents():
    with pytest.raises(InputError, match="document"):
        TimeInvariantMamba(6)(torch.randn(1, 4, 6), None, Layout.packed([[2, 2]]))


def test_the_baseline_differs_in_selection_alone():
    selective, constant = mamba.Mamba(48, state_dim=8), TimeInvariantMamba(48, state_dim=8)
    shared = {name for name, _ in constant.named_parameters()} & {name for name, _ in selective.named_parameters()}
    assert shared == {"in_proj.weight", "conv1d.weight", "conv1d.bias", "A_log", "D", "out_proj.weight"}


def test_the_experiment_on_few_steps(monkeypatch):
    """Three steps teach nothing; the state doesn't grow."""
    monkeypatch.setattr(selective_copying, "accuracy", partial(selective_copying.accuracy, steps=3))
    told = []
    figures = list(mamba.reproduce(Run(seeds=(0,), progress=lambda text, fraction: told.append(fraction))))
    assert [f.holds for f in figures] == [False, False, True]
    assert len(told) == 6
    assert told == sorted(told)
