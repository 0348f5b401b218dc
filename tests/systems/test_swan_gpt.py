from __future__ import annotations

import pytest
import torch

from lengthwise.models.language_model import LanguageModel
from lengthwise.systems import swan_gpt
from lengthwise.systems.experiments import train_bytes
from lengthwise.systems.system import Run


@pytest.fixture(scope="module")
def model():
    return train_bytes(swan_gpt.SWAN, "rope", seed=10, steps=2)


def test_pieces_run_at_tiny_sizes(model, monkeypatch):
    monkeypatch.setattr(swan_gpt, "LENGTHS", (96, 128))
    found = swan_gpt.examine(model)
    assert found.at_trained > 0
    assert set(found.rises) == {96, 128}
    law = swan_gpt.fit_law(model, texts=2)
    assert law.trained == 64
    assert [layer.temperature for layer in swan_gpt.global_layers(swan_gpt.with_law(model, law))] == [law]
    swan_gpt.with_law(model, None)
    figures = list(swan_gpt.of_lengths({"SWAN": [found]}, "one seed"))
    assert [figure.measured for figure in figures] == [found.at_trained, *found.rises.values()]


def test_both_models_have_the_same_weights_and_the_conversion_keeps_them():
    ours, full = swan_gpt.models()
    for (name, a), (other, b) in zip(ours.named_parameters(), full.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    made = swan_gpt.swan(full, window=swan_gpt.WINDOW)
    tokens = torch.randint(256, (1, 40))
    assert torch.equal(made(tokens)[0], ours(tokens)[0])
    assert not torch.equal(made(tokens)[0], full(tokens)[0])
    before = full.head.weight.clone()
    trained = swan_gpt.convert(full, seed=10, steps=1)
    assert not torch.equal(trained.head.weight, before)
    assert torch.equal(full.head.weight, before)


@pytest.mark.parametrize("length", [64, 512])
def test_the_share_of_the_cache_is_exact(length):
    figure = swan_gpt.cache_share(length)
    assert figure.holds
    assert figure.measured == 1 / 4 + 3 * 16 / (4 * length)
    ours, full = swan_gpt.models()
    assert ours.state_nbytes(length) / full.state_nbytes(length) == 1 / 4 + 3 * 15 / (4 * length)


def test_time_is_a_ratio():
    assert swan_gpt.forward_time(length=64, repeats=1).measured > 0


def test_the_real_model_is_read_within_and_beyond_its_window(monkeypatch, tmp_path):
    """With a small model in the place of the file's."""

    class Bytes:
        def encode(self, text):
            return list(text.encode())

    small = LanguageModel(256, 8, "4*(attention(heads=2) + mlp)")
    small.tokenizer = Bytes()
    monkeypatch.setattr(swan_gpt, "SMOLLM2_TRAINED", 200)
    monkeypatch.setattr(swan_gpt, "LAST", 64)
    monkeypatch.setattr(swan_gpt, "ASKED", (100, 200, 300))
    monkeypatch.setattr(swan_gpt, "EVERY", 50)
    monkeypatch.setattr(swan_gpt, "smollm2_file", lambda: tmp_path)
    monkeypatch.setattr(swan_gpt, "load", lambda path: small)
    figures = list(swan_gpt.of_smollm2(Run(seeds=(10,))))
    perplexities, facts = figures[:7], figures[7:]
    assert all(figure.measured > 1 for figure in perplexities)
    assert all(0 <= figure.measured <= 1 for figure in facts)
    told = [figure.note.split()[0] for figure in facts]
    assert told == ["2", "4", "6", "2", "4", "6", "6"]  # with the law only beyond the trained length
    monkeypatch.setattr(swan_gpt, "smollm2_file", lambda: None)
    assert not list(swan_gpt.of_smollm2(Run(seeds=(10,))))
