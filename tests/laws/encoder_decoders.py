"""Encoder-decoders of several kinds."""

from __future__ import annotations

import torch

SMALL = {
    "vocab_size": 13,
    "dim": 8,
    "encoder": "attention(heads=2) + bidirectional(min_gru)",
    "decoder": "attention(heads=2) + cross_attention(heads=2) + mlp",
}
KINDS = {
    "attention": {},
    "learned positions, tied": {"position": "learned(length=256)", "tie": True, "norm": "layernorm"},
    "recurrent decoder, key heads shared": {
        "decoder": "chain(min_gru + cross_attention(heads=4, kv_heads=2)) + swiglu"
    },
    "two hops": {"position": "none", "decoder": "two_hop(cross_attention(heads=2) + mlp) + rwkv"},
    "own source vocabulary": {"source_vocab_size": 5, "source_position": "sinusoidal"},
}


def draw(rows, length, most=5, seed=0):
    return torch.randint(most, (rows, length), generator=torch.Generator().manual_seed(seed))
