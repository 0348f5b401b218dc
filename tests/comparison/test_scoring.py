import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from lengthwise.comparison.scoring import TARGET, context_lengths, held_out_text, score
from lengthwise.errors import InputError
from lengthwise.tasks.corpus import Corpus, Document


def corpus(length: int, bytes_per_token: float = 1.0) -> Corpus:
    tokens = np.random.default_rng(0).integers(0, 64, length).astype(np.uint8)
    return Corpus((Document("random", tokens),), bytes_per_token=bytes_per_token)


class Uniform(nn.Module):
    """Knows nothing."""

    def forward(self, x, state=None, layout=None):
        return torch.zeros(*x.shape, 256), None


class Copier(nn.Module):
    """Looks for the last two tokens in what it has read, and expects what followed them; else any of 64 tokens."""

    def forward(self, x, state=None, layout=None):
        seen = x if state is None else torch.cat([state, x], 1)
        logits = torch.full((*x.shape, 256), -30.0)
        logits[..., :64] = 0.0
        for b, row in enumerate(seen.tolist()):
            follows: dict[tuple[int, int], int] = {}
            for t in range(1, len(row)):
                at = t - (len(row) - x.shape[1])
                if at >= 0 and (row[t - 1], row[t]) in follows:
                    logits[b, at, follows[row[t - 1], row[t]]] = 20.0
                if t + 1 < len(row):
                    follows[row[t - 1], row[t]] = row[t + 1]
        return logits, seen


def scored(model, text):
    found = list(score(model, text, "a", 0, seconds=60, context=nullcontext))
    return {(m.measure, m.at): m for m in found}


def test_a_model_that_knows_nothing_needs_eight_bits_and_recalls_nothing():
    found = scored(Uniform(), held_out_text(corpus(6000), 64))
    assert found["bits_per_byte", None].value == pytest.approx(8.0)
    for at in (16, 32, 64, 128, 256):
        assert found["bits_at_context", at].value == pytest.approx(8.0)
    assert found["recall", 256].value == pytest.approx(0.0)
    assert found["recall", 256].error == pytest.approx(0.0)


def test_bits_are_counted_per_byte_and_not_per_token():
    found = scored(Uniform(), held_out_text(corpus(6000, bytes_per_token=4.0), 64))
    assert found["bits_per_byte", None].value == pytest.approx(2.0)


def test_a_model_that_copies_recalls_all_six_bits_at_any_distance():
    found = scored(Copier(), held_out_text(corpus(4000), 64))
    for distance in (64, 128, 256):
        assert found["recall", distance].value == pytest.approx(6.0, abs=0.6)
    assert found["bits_at_context", 256].value > 5.9, "random text can't be foreseen"


def test_the_mean_is_that_of_the_blocks_with_its_standard_error():
    found = scored(Copier(), held_out_text(corpus(4000), 64))
    m = found["recall", 64]
    blocks = torch.tensor(m.blocks, dtype=torch.float64)
    assert m.value == pytest.approx(blocks.mean().item())
    assert m.error == pytest.approx(blocks.std().item() / math.sqrt(len(blocks)))


def test_when_time_is_short_the_same_first_blocks_are_scored():
    text = held_out_text(corpus(9000), 64)
    whole = next(iter(score(Uniform(), text, "a", 0, seconds=60, context=nullcontext)))
    some = next(iter(score(Uniform(), text, "a", 0, seconds=0, context=nullcontext)))
    assert 8 <= len(some.blocks) < len(whole.blocks)
    assert some.blocks == whole.blocks[: len(some.blocks)]


def test_contexts_reach_four_times_the_trained_length():
    assert context_lengths(512)[-1] == 2048
    assert 100 in context_lengths(100)
    assert context_lengths(100)[-1] == 400


def test_short_data_gives_fewer_contexts():
    text = held_out_text(corpus(TARGET + 130), 64)
    assert text.contexts == (16, 32, 64, 128)


def test_data_shorter_than_a_context_is_an_input_error():
    with pytest.raises(InputError, match="the held-out tenth of the data has 50 tokens"):
        held_out_text(corpus(50), 64)
