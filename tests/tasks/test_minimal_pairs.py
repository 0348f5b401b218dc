"""Minimal pairs: the log probability of a sequence, and the pairs that are made of a text."""

import numpy as np
import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.models.language_model import LanguageModel
from lengthwise.tasks.corpus import Corpus, Document
from lengthwise.tasks.minimal_pairs import KEYWORDS, code_pairs, log_probabilities, sample, swapped_pairs

CODE = b"""
def largest(values, key=lambda value: value[0]):
    found = None
    for place, value in enumerate(values):
        if found is None or key(value) > key(values[found]):
            found = place
        else:
            continue
    return {"place": found, "value": values[found]}
"""


def corpus(text, vocab_size=256):
    return Corpus((Document("text", np.frombuffer(text, dtype=np.uint8)),), vocab_size)


@pytest.fixture(scope="module", params=["attention(heads=2) + mlp", "mamba"])
def model(request):
    torch.manual_seed(10)
    return LanguageModel(50, 16, f"2*({request.param})", position="rope").double().eval()


def test_one_pass_is_the_sum_of_the_steps(model):
    tokens = torch.randint(50, (3, 17))
    total, state = torch.zeros(3, dtype=torch.float64), None
    for t in range(16):
        logits, state = model(tokens[:, t : t + 1], state)
        total += logits[:, 0].log_softmax(-1).gather(1, tokens[:, t + 1 : t + 2])[:, 0].detach()
    torch.testing.assert_close(log_probabilities(model, tokens), total, rtol=0, atol=1e-10)


def test_padding_and_the_batch_change_nothing(model):
    rows = [torch.randint(50, (n,)) for n in (5, 12, 9)]
    alone = torch.cat([log_probabilities(model, row[None]) for row in rows])
    for fill in (0, 37):
        padded = torch.full((3, 14), fill)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        for batch in (1, 3):
            found = log_probabilities(model, padded, [5, 12, 9], batch=batch)
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-10)


def test_a_pair_is_right_where_the_original_is_likelier(model):
    pairs = swapped_pairs(Corpus((Document("", np.random.default_rng(0).integers(0, 50, 400)),), 50), 20, 9)
    known = log_probabilities(model, pairs.right) > log_probabilities(model, pairs.wrong)
    assert pairs.outcomes(model).tolist() == known.tolist()
    assert pairs.accuracy(model) == known.double().mean().item()
    assert 0 < pairs.accuracy(model) < 1


def test_of_code_one_closing_bracket_or_the_middle_of_a_keyword_is_wrong():
    pairs = code_pairs(corpus(CODE * 40), count=100, length=28, seed=10)
    assert pairs.right.shape == pairs.wrong.shape == (100, 28)
    brackets = 0
    for right, wrong in zip(pairs.right.tolist(), pairs.wrong.tolist(), strict=True):
        assert bytes(right) in CODE * 40
        places = [i for i in range(28) if right[i] != wrong[i]]
        assert min(places) >= 4
        if len(places) == 1:
            brackets += 1
            (at,) = places
            kinds = {ord(c): ord(o) for c, o in (")(", "][", "}{")}
            assert {right[at], wrong[at]} <= set(kinds)
            assert kinds[right[at]] in right[:at]
        else:
            first, second = places
            assert second == first + 1
            assert (wrong[first], wrong[second]) == (right[second], right[first])
            assert any(bytes(right[first - (len(w) - 1) // 2 :][: len(w)]) == w.encode() for w in KEYWORDS), bytes(
                right
            )
    assert brackets == 50


def test_of_any_text_two_letters_of_a_word_are_swapped():
    text = "Ça ne va pas très bien, 1234567, là-bas. ".encode() * 30
    pairs = swapped_pairs(corpus(text), count=60, length=16, seed=10)
    assert len(pairs) == 60
    for right, wrong in zip(pairs.right.tolist(), pairs.wrong.tolist(), strict=True):
        assert sorted(right) == sorted(wrong)
        first, second = (i for i in range(16) if right[i] != wrong[i])
        assert second == first + 1
        assert bytes(right[first : second + 1]).isalpha()


def test_the_same_seed_makes_the_same_pairs():
    first, again, other = (swapped_pairs(corpus(CODE * 40), 30, 16, seed=seed) for seed in (1, 1, 2))
    assert (first.right == again.right).all()
    assert (first.right != other.right).any()


def test_of_a_long_text_stretches_spread_over_it_are_searched():
    text = corpus(bytes(range(256)) * 64)
    found = sample(text, most=64 * 100)
    assert len(found) == 6400
    assert found[:100].tolist() == list(range(100))
    assert found[-1] == 254
    assert (sample(text) == text.cut(0, len(text)).numpy()).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: code_pairs(corpus(b"no code in here at all. " * 20)), "too few closing brackets"),
        (lambda: code_pairs(corpus(b"f(x) " * 100)), "too few keywords"),
        (lambda: code_pairs(corpus(b"f(x) " * 100, 300)), "vocabulary of 300"),
        (lambda: code_pairs(corpus(CODE), length=4), "at least 5 tokens, got 4"),
        (lambda: swapped_pairs(corpus(b"1234 5678 " * 50)), "too few words"),
        (lambda: swapped_pairs(corpus(b"abcdef")), "too few words"),
    ],
)
def test_a_text_that_gives_no_pairs_is_an_error(make, message):
    with pytest.raises(InputError, match=message):
        make()
