from __future__ import annotations

import pytest
import torch

from lengthwise.conversion.alignment import attention_layers, attention_temperature
from lengthwise.systems import attention_alignment as system


def test_a_sequence_asks_for_the_value_of_one_of_its_keys():
    tokens, values = system.sequences(5, 40, seed=10)
    assert tokens.shape == (5, 41, 2)
    for row, value in zip(tokens.tolist(), values.tolist(), strict=True):
        held = dict(row[:-1])
        assert len(held) == 40
        assert held[row[-1][0]] == value < 16
        assert row[-1][1] == 16
    assert torch.equal(tokens, system.sequences(5, 40, seed=10)[0])
    assert not torch.equal(tokens, system.sequences(5, 40, seed=11)[0])


def test_pieces_run_at_tiny_sizes(monkeypatch):
    monkeypatch.setattr(system, "LENGTHS", (48, 64))
    model = system.train(10, steps=2)
    found = system.examine(model, 10, examples=4)
    assert found.sharpness.keys() == found.accuracy.keys() == {32, 48, 64}
    assert all(0 < value < 1 for value in found.sharpness.values())
    assert found.taus.keys() == found.aligned.keys() == found.at_trained.keys() == {"max_prob", "entropy"}
    assert all(0.3 <= tau <= 1 for tau in found.taus.values())


@torch.no_grad()
def test_logits_begin_as_wide_as_in_t5_and_aren_t_divided_again():
    torch.manual_seed(0)
    model = system.Retriever()
    for layer in attention_layers(model):
        assert layer.scale == 1
        q, k, _ = layer.project(torch.randn(4, 50, system.DIM))
        logits = torch.einsum("bihd,bjhd->bhij", q, k)
        assert float(logits.std()) == pytest.approx(1, rel=0.15)


@torch.no_grad()
def test_accuracy_reads_the_same_sequences_in_any_parts(monkeypatch):
    torch.manual_seed(0)
    model = system.Retriever().eval()
    whole = system.accuracy(model, 20, examples=50)
    monkeypatch.setattr(system, "TOKENS", 60)
    assert system.accuracy(model, 20, examples=50) == whole
    tokens, _ = system.sequences(3, 20, seed=10)
    before = model(tokens)[0]
    with attention_temperature(model, 0.5):
        assert not torch.equal(model(tokens)[0], before)
