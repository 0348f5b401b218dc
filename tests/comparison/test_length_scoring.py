"""What a model of one length is scored on, with models of which the score is known."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from lengthwise.comparison.length_scoring import length_text, score_length
from lengthwise.errors import InputError
from lengthwise.tasks.corpus import Corpus, Document

WORDS = [f"{first}{second}word" for first in "abcdefgh" for second in "klmnopqr"]
TEXT = " ".join(np.random.default_rng(0).choice(WORDS, 3000)).encode()


def corpus(vocab_size=256, bytes_per_token=1.0):
    return Corpus((Document("text", np.frombuffer(TEXT, dtype=np.uint8)),), vocab_size, bytes_per_token)


class Limited(nn.Module):
    """Finds all tokens as likely as each other until it has seen more than `enough`; never given over `most`."""

    def __init__(self, enough, most):
        super().__init__()
        self.enough, self.most, self.place = enough, most, nn.Parameter(torch.zeros(()))

    def forward(self, x, state=None, layout=None):
        assert x.shape[1] < self.most
        seen = torch.arange(1, x.shape[1] + 1)
        logits = torch.zeros(*x.shape, 256)
        logits[:, seen > self.enough, :128] = 30.0  # one bit less: all bytes of the text are below 128
        return logits, None


def scored(model, text, length):
    found = list(score_length(model, text, "a @ 0", length, 0, nullcontext))
    return {(m.measure, m.at): m for m in found}


@pytest.fixture(scope="module")
def text():
    return length_text(corpus(), (32, 128), "letters")


def test_a_longer_length_gains_what_its_context_saves(text):
    long = scored(Limited(enough=40, most=128), text, 128)
    assert long["bits_long", None].value == pytest.approx(7.0, abs=1e-4)
    assert long["bits_short", None].value == pytest.approx(8.0, abs=1e-4)
    assert long["context_gain", None].value == pytest.approx(1.0, abs=1e-4)
    assert [at for measure, at in long if measure == "bits_at_context"] == [32, 64, 128]
    assert long["repeats", None].value == pytest.approx(7.0, abs=1e-4)


def test_no_more_is_read_than_the_length_of_training(text):
    short = scored(Limited(enough=40, most=32), text, 32)
    assert short["bits_long", None].value == pytest.approx(8.0, abs=1e-4)
    assert short["context_gain", None].value == 0
    assert short["repeats", None].value == pytest.approx(8.0, abs=1e-4)
    assert short["pairs", None].value == 0, "equally likely is not likelier"


def test_bits_are_counted_per_byte_and_not_per_token():
    text = length_text(corpus(bytes_per_token=4.0), (32, 128), "none")
    found = scored(Limited(1000, 128), text, 128)
    assert found["bits_long", None].value == pytest.approx(2.0)


def test_all_lengths_are_scored_on_the_same_tokens(text):
    assert text.passages.shape[1] == 128
    assert text.target == 16
    assert text.reads == (32, 64, 128)
    assert text.pairs.length == 28
    assert text.tokens(32) < text.tokens(128)


def test_what_the_text_does_not_allow_is_left_out_with_the_reason():
    text = length_text(corpus(vocab_size=300), (16, 128), "code")
    assert text.pairs is None
    assert text.repeats is None
    reasons = dict(text.left_out)
    assert "vocabulary of 300" in reasons["pairs"]
    assert "vocabulary of 300" in reasons["repeats"]
    assert not any(m.startswith(("pairs", "repeats")) for m, _ in scored(Limited(1000, 128), text, 128))


def test_a_longest_length_without_room_for_words_leaves_them_out():
    text = length_text(corpus(), (16, 64), "letters")
    assert text.repeats is None
    assert dict(text.left_out)["repeats"].startswith("a longest length of 64 has no room")


def test_too_short_a_text_is_an_error():
    with pytest.raises(InputError, match="8 windows of 8192"):
        length_text(corpus(), (32, 8192), "none")


def test_errors_are_those_of_the_mean(text):
    found = scored(Limited(40, 128), text, 128)["bits_at_context", 64]
    assert len(found.blocks) == len(text.passages)
    assert found.value == pytest.approx(math.fsum(found.blocks) / len(found.blocks))
