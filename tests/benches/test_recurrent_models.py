"""The benchmarks of recurrent models, at a size that takes a moment."""

import pytest

from lengthwise.benches import recurrent_models as models
from lengthwise.mixers.mamba2 import Mamba2


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
