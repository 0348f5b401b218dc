"""The benchmarks of Mamba models, at a size that takes a moment."""

import pytest

from lengthwise.benches import mamba
from lengthwise.mixers.mamba2 import Mamba2


def test_half_precision_is_measured_against_float32():
    row = mamba.in_half_precision("mamba2", 16, layers=1, dim=16)
    assert row.seconds > 0
    assert row.ratios["float32"] > 0


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
def test_the_peer_has_as_many_parameters(mixer):
    pytest.importorskip("transformers")
    peer = {"mamba": mamba.transformers_mamba, "mamba2": mamba.transformers_mamba2}[mixer](1, 32)
    tied = peer.config.tie_word_embeddings
    ours = mamba.LanguageModel(mamba.VOCABULARY, 32, mixer, position="none", tie=tied)
    assert mamba.parameters(ours) == mamba.parameters(peer)
    row = mamba.against_transformers(mixer, 8, layers=1, dim=32)
    assert row.ratios["transformers"] > 0


def test_the_sizes_are_those_of_the_mixer():
    pytest.importorskip("transformers")
    config = mamba.transformers_mamba2(1, 64).config
    mixer = Mamba2(64)
    assert (config.num_heads, config.head_dim, config.state_size) == (mixer.heads, mixer.head_dim, mixer.state_dim)
    assert config.n_groups == mixer.groups
