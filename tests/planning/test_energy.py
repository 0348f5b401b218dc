"""Counted operations against what the sizes of the products say, and energies against arithmetic."""

import pytest
import torch
from torch import nn

from lengthwise.errors import InputError
from lengthwise.models.language_model import LanguageModel
from lengthwise.planning import Operations, count_operations, joules
from lengthwise.planning.energy import count_products


def test_products_of_a_model_are_those_of_its_maps():
    dim, vocab, length = 8, 16, 10
    model = LanguageModel(vocab, dim, "layernorm + 2*(rwkv + rwkv_channels)", "none")
    found = count_products(model, torch.zeros(3, length, dtype=torch.long))
    tokens = 3 * length
    assert found[""] == tokens * (2 * 13 * dim**2 + dim * vocab)
    assert found["stack.layers.1"] == tokens * 4 * dim**2
    assert found["stack.layers.4.part.value"] == found["stack.layers.4.part.key"] == tokens * 4 * dim**2
    assert found["head"] == tokens * dim * vocab


def test_attention_is_counted_and_what_has_no_products_has_none():
    found = count_products(LanguageModel(16, 8, "attention(heads=2)", "none"), torch.zeros(1, 10, dtype=torch.long))
    scores_and_sums = 2 * 10 * 10 * 8
    assert found["stack.layers.0"] == 10 * 4 * 8**2 + scores_and_sums
    assert count_products(nn.ReLU(), torch.zeros(3)) == {"": 0}


def test_a_module_that_runs_twice_counts_twice():
    shared = nn.Linear(3, 5, bias=False)
    model = nn.Sequential(shared, nn.Linear(5, 3, bias=False), shared)
    assert count_products(model, torch.zeros(2, 3))[""] == 2 * 3 * 15


def test_spikes_add_where_real_numbers_multiply():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    dense = count_operations(model, torch.zeros(5, 4))
    assert (dense, dense.triggered) == (Operations(5 * (24 + 12)), 0.0)
    driven = count_operations(model, torch.zeros(5, 4), rates={"1": 0.25})
    assert driven == Operations(multiplied=5 * 24, driven=5 * 12, added=15.0)
    assert driven.triggered == 0.25
    assert joules(driven) == pytest.approx(120 * 4.6e-12 + 15 * 0.9e-12)
    assert joules(driven, multiply_accumulate=2.0, accumulate=1.0) == 255.0
    assert joules(dense) == pytest.approx(180 * 4.6e-12)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"0.wight": 0.5}, "unknown module '0.wight'"),
        ({"0": 1.5}, "from 0 to 1, got 1.5"),
        ({"0": 0.5, "0.0": 0.5}, "0 and a module inside of it"),
    ],
)
def test_rates_that_mean_nothing_are_errors(rates, message):
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 6)), nn.Linear(6, 2))
    with pytest.raises(InputError, match=message):
        count_operations(model, torch.zeros(1, 4), rates=rates)
