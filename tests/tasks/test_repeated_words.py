"""Words that come again some way back in their context."""

import re

import numpy as np
import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.models.language_model import LanguageModel
from lengthwise.tasks.corpus import Corpus, Document
from lengthwise.tasks.repeated_words import repeated_words

rng = np.random.default_rng(0)
VOCABULARY = ["".join(rng.choice(list("abcdefgh_"), rng.integers(3, 12))) for _ in range(60)] + ["return", "continue"]
TEXT = " ".join(rng.choice(VOCABULARY, 3000))


def corpus(text, vocab_size=256):
    return Corpus((Document("text", np.frombuffer(text.encode(), dtype=np.uint8)),), vocab_size)


def test_every_stretch_ends_with_a_word_whose_last_showing_is_as_far_back_as_asked():
    words = repeated_words(corpus(TEXT), count=100, length=256, near=40, far=200)
    assert words.windows.shape == (100, 256)
    for window, mask in zip(words.windows, words.mask, strict=True):
        text = bytes(window.tolist()).decode()
        size = int(mask.sum()) + 2
        assert mask[-(size - 2) :].all()
        word = text[-size:]
        assert re.fullmatch(r"[a-h_]{6,24}", word)
        assert word not in ("return", "continue")
        showings = [m.start() for m in re.finditer(rf"\b{word}\b", text[: -len(word)])]
        assert 40 <= 256 - size - showings[-1] <= 200


def test_the_words_are_those_that_a_plain_search_finds():
    """All of them, when as many are asked for as there are."""
    found = repeated_words(corpus(TEXT), count=10_000, length=256, near=40, far=200)
    last, ends = {}, []
    for match in re.finditer(r"\w+", TEXT):
        word = match[0]
        if len(word) < 6 or word in ("return", "continue"):
            continue
        if word in last and 40 <= match.start() - last[word] <= 200 and match.end() >= 256:
            ends.append(match.end())
        last[word] = match.start()
    assert [bytes(w.tolist()).decode() for w in found.windows] == [TEXT[end - 256 : end] for end in ends]


@torch.no_grad()
def test_the_mean_loss_is_that_of_all_scored_bytes_given_the_last_bytes_alone():
    words = repeated_words(corpus(TEXT), count=30, length=128, near=20, far=100)
    torch.manual_seed(10)
    model = LanguageModel(256, 16, "attention(heads=2)", position="learned(length=32)").eval()
    total, count = 0.0, 0
    for window, mask in zip(words.windows[:, -33:], words.mask[:, -33:], strict=True):
        logits = model(window[None, :-1])[0][0].log_softmax(-1)
        for t in range(32):
            if mask[t + 1]:
                total, count = total - logits[t, window[t + 1]].item(), count + 1
    assert words.nll(model, 33) == pytest.approx(total / count, abs=1e-5)
    with pytest.raises(InputError, match="learned positions end at 31"):
        words.nll(model, 34)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"far": 500}, "don't fit in 512 bytes"),
        ({"near": 300, "far": 200}, "don't fit"),
        ({"longest": 5}, "don't fit"),
        ({"near": 390, "far": 390, "length": 2048}, "too few words"),
    ],
)
def test_words_that_cannot_be_found_are_an_error(arguments, message):
    with pytest.raises(InputError, match=message):
        repeated_words(corpus(TEXT[:3000]), **arguments)


def test_a_corpus_of_other_tokens_is_an_error():
    with pytest.raises(InputError, match="vocabulary of 300"):
        repeated_words(corpus(TEXT, 300))
