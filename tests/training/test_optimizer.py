import itertools

import pytest
import torch
from torch import nn

from lengthwise.errors import InputError
from lengthwise.training.optimizer import adamw, learning_rate_factor, set_learning_rate


def test_schedule_rises_linearly_and_falls_by_a_cosine():
    factors = [learning_rate_factor(t, steps=110, warmup=10, final=0.1) for t in range(111)]
    assert factors[:10] == pytest.approx([(t + 1) / 10 for t in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.55)  # half way: the middle between 1 and 0.1
    assert factors[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert learning_rate_factor(0, steps=1, warmup=0) == 1.0


def test_only_matrices_that_are_not_marked_decay():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    model[2].weight.no_weight_decay = True
    optimizer = adamw(model, learning_rate=0.1, weight_decay=0.3)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.0,
    }  # fmt: skip
    set_learning_rate(optimizer, 0.7)
    assert {g["lr"] for g in optimizer.param_groups} == {0.7}


def test_a_model_without_parameters_is_refused():
    with pytest.raises(InputError, match="no trainable parameters"):
        adamw(nn.ReLU(), learning_rate=0.1)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameters"):
        adamw(frozen, learning_rate=torch.pi)
