"""The benchmarks of recurrent models, at a size that takes a moment."""

import pytest

from lengthwise.benches import recurrent_models as models
from lengthwise.mixers.mamba2 import Mamba2
from lengthwise.models.language_model import LanguageModel


def test_half_precision_is_measured_against_float32():
    row = models.in_half_precision("mamba2", 16, layers=1, dim=16)
    assert row.seconds > 0
    assert row.ratios["float32"] > 0


@pytest.mark.parametrize("name", models.PEERS)
def test_the_peer_has_as_many_parameters(name):
    pytest.importorskip("transformers")
    peer = models.PEERS[name].build(2, 32)
    ours = models.PEERS[name].ours(2, 32, peer.config.tie_word_embeddings)
    assert models.parameters(ours) == models.parameters(peer)
    (row,) = models.against_transformers(name, 8, layers=2, dim=32)
    assert row.ratios["transformers"] > 0


def test_without_transformers_there_is_no_peer(monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    assert list(models.against_transformers("mamba", 8)) == []


def test_the_sizes_are_those_of_the_mixer():
    pytest.importorskip("transformers")
    config = models.transformers_mamba2(1, 64).config
    mixer = Mamba2(64)
    assert (config.num_heads, config.head_dim, config.state_size) == (mixer.heads, mixer.head_dim, mixer.state_dim)
    assert config.n_groups == mixer.groups


def test_rows_of_a_short_training_step(monkeypatch):
    monkeypatch.setattr(models, "DIM", 64)
    row = models.against_a_transformer(4, layers=2)
    assert row.seconds > 0
    assert "parameters" in row.note


def test_a_transformer_of_equal_parameters():
    model = LanguageModel(256, models.DIM, "4*mamba", position="none")
    width = models.hidden(model, 2)
    other = LanguageModel(256, models.DIM, f"2*(attention + mlp(hidden={width}))")
    assert models.parameters(other) == pytest.approx(models.parameters(model), rel=1e-3)
