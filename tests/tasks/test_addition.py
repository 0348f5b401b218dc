import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.models.language_model import LanguageModel
from lengthwise.tasks.addition import DIGIT, EQUALS, HINT, PADDING, PLUS, Addition

FORMATS = pytest.mark.parametrize(
    "task",
    [
        Addition(order=order, hints=hints, scratchpad=scratchpad)
        for order in ("standard", "reversed")
        for hints in (0, 24)
        for scratchpad in ("none", "carries")
    ],
    ids=lambda task: f"{task.order}-{task.hints}-{task.scratchpad}",
)
LETTERS = {PLUS: "+", EQUALS: "=", PADDING: " "}


def spelt(tokens):
    """Tokens as text: hints are letters."""
    letter = {**LETTERS, **{DIGIT + i: str(i) for i in range(10)}, **{HINT + i: chr(ord("a") + i) for i in range(26)}}
    return "".join(letter[token] for token in tokens.tolist())


def test_the_formats():
    for settings, text in {
        (): "576+361=0937",
        (("order", "reversed"),): "675+163=7390",
        (("hints", 4),): "c5b7a6+c3b6a1=d0c9b3a7",
        (("order", "reversed"), ("hints", 4)): "a6b7c5+a1b6c3=a7b3c9d0",
        (("order", "reversed"), ("scratchpad", "carries")): "675+163=70319000=7390",
        (("scratchpad", "carries"),): "576+361=70319000=0937",
    }.items():
        assert spelt(Addition(**dict(settings)).written(576, 361)) == text
    assert spelt(Addition(hints=9).written(5, 6, digits=2, first=3)) == "e0d5+e0d6=f0e1d1"


@FORMATS
@given(a=st.integers(0, 10**20 - 1), b=st.integers(0, 10**20 - 1), first=st.integers(0, 3))
def test_what_is_written_is_read_again(task, a, b, first):
    assert task.read(task.written(a, b, first=first if task.hints else 0)) == (a, b, a + b)


@FORMATS
@pytest.mark.parametrize("digits", range(1, 21))
def test_carries_through_all_digits(task, digits):
    a = 10**digits - 1
    assert task.read(task.written(a, 1)) == (a, 1, 10**digits)
    assert task.read(task.written(a, a)) == (a, a, 2 * a)


@FORMATS
def test_batches_add(task):
    length = task.length_of(5)
    example = task.batch(60, length=length, seed=0)
    digits = set()
    for tokens, targets, mask in zip(example.tokens, example.targets, example.mask, strict=True):
        text = torch.cat([tokens, targets[-1:]])
        a, b, c = task.read(text)
        assert a + b == c
        shown = text[text != PADDING]
        equals = shown.tolist().index(EQUALS)
        assert torch.equal(targets[mask], shown[equals + 1 :])
        assert mask.tolist() == sorted(mask.tolist())
        assert torch.equal(targets[~mask][-1:], torch.tensor([EQUALS]))
        n = shown.tolist().index(PLUS) // (2 if task.hints else 1)
        first = int(shown[shown >= HINT].min()) - HINT if task.hints else 0
        assert torch.equal(shown, task.written(a, b, digits=n, first=first))
        digits.add(n)
    assert digits == {1, 2, 3, 4, 5}


def test_the_same_hints_stand_in_all_numbers_and_all_hints_are_used():
    task = Addition(order="reversed", hints=10)
    used = set()
    for text in task.of_digits(4).batch(200, seed=1).tokens:
        hints = [t - HINT for t in text.tolist() if t >= HINT]
        assert hints[:4] == hints[4:8] == hints[8:12]
        assert hints[8:] == list(range(hints[0], hints[0] + 5))
        used |= set(hints)
    assert used == set(range(10))


@given(digits=st.integers(1, 30), hints=st.sampled_from([0, 40]), scratchpad=st.sampled_from(["none", "carries"]))
def test_length_and_digits_agree(digits, hints, scratchpad):
    task = Addition(hints=hints, scratchpad=scratchpad)
    assert task.digits_in(task.length_of(digits)) == digits == task.digits_in(task.length_of(digits + 1) - 1)
    assert len(task.written(0, 0, digits=digits)) == task.length_of(digits) + 1


@given(digits=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_chain_of_carries_goes_through_all_places(digits, seed):
    task = Addition(carries="chain", scratchpad="carries").of_digits(digits)
    example = task.batch(3, seed=seed)
    for tokens, targets in zip(example.tokens, example.targets, strict=True):
        text = torch.cat([tokens, targets[-1:]])
        work = text[text.tolist().index(EQUALS) + 1 :][: 2 * (digits + 1)] - DIGIT
        assert work[1::2].tolist() == [1] * digits + [0]
        a, b, c = task.read(text)
        assert a + b == c >= 10**digits


def test_padding_is_hidden_from_a_model():
    torch.manual_seed(0)
    task = Addition(order="reversed", hints=8)
    model = LanguageModel(task.vocab_size, 16, "2*attention(heads=2)", position="rope")
    example = task.batch(6, length=task.length_of(4), seed=0)
    logits = task.logits(model, example)
    for row, tokens in enumerate(example.tokens):
        own = tokens[tokens != PADDING]
        torch.testing.assert_close(logits[row, -len(own) :], model(own[None])[0][0])


class Scripted(torch.nn.Module):
    """Answers from a table of what comes after each prefix, keeping the prefix as its state."""

    def __init__(self, task, rows):
        super().__init__()
        self.vocab_size, self.after = task.vocab_size, {}
        for row in rows.tolist():
            for end in range(1, len(row)):
                self.after[tuple(row[:end])] = row[end]

    def forward(self, tokens, state=None, layout=None):
        read = tokens if state is None else torch.cat([state, tokens], 1)
        following = torch.tensor([self.after.get(tuple(row), PADDING) for row in read.tolist()])
        logits = torch.nn.functional.one_hot(following, self.vocab_size).float()[:, None]
        return logits.expand(-1, tokens.shape[1], -1), read


def test_decoding_counts_whole_answers_that_the_model_writes_itself():
    task = Addition(order="reversed", hints=9).of_digits(3)
    example = task.batch(8, seed=0)
    text = torch.cat([example.tokens, example.targets[:, -1:]], 1)
    assert task.decoded(Scripted(task, text), example) == 1.0
    text[:2, -1] = DIGIT + (text[:2, -1] - DIGIT + 1) % 10
    text[2, -5] = DIGIT + (text[2, -5] - DIGIT + 1) % 10
    assert task.decoded(Scripted(task, text), example) == 5 / 8


def test_decoding_needs_sums_of_one_length():
    task = Addition()
    with pytest.raises(InputError, match="of_digits"):
        task.decoded(torch.nn.Identity(), task.batch(20, seed=0))


def test_what_is_no_sum_is_not_read():
    task = Addition(hints=5)
    good = task.written(12, 34)
    for bad in (good[:3], good[good != PLUS], torch.cat([good, good]), good[1:], torch.cat([good[:-2], good[-1:]])):
        with pytest.raises(InputError):
            task.read(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Addition(fewest=0), "fewest"),
        (lambda: Addition(order="forward"), "order"),
        (lambda: Addition(scratchpad="lines"), "scratchpad"),
        (lambda: Addition(carries="long"), "carries"),
        (lambda: Addition(hints=3, length=60).batch(2), "hints"),
        (lambda: Addition().written(12, 3, digits=1), "below 10"),
        (lambda: Addition().written(-1, 3), "at least 0"),
        (lambda: Addition(hints=3).written(123, 3), "need 4 hints"),
        (lambda: Addition(hints=5).written(123, 3, first=2), "need 4 hints, got 3"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_formats_differ_in_nothing_else():
    """The same seed gives the same numbers in all formats."""
    plain = Addition().of_digits(4)
    for other in (dataclasses.replace(plain, order="reversed"), dataclasses.replace(plain, scratchpad="carries")):
        numbers = []
        for task in (plain, other.of_digits(4)):
            example = task.batch(5, seed=2)
            texts = torch.cat([example.tokens, example.targets[:, -1:]], 1)
            numbers.append([task.read(text) for text in texts])
        assert numbers[0] == numbers[1]
