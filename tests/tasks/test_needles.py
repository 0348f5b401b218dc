"""Facts in a long text, and models that find them again: one whose weights are set to, and others that don't."""

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.repeat_after_me import ngram_copier
from lengthwise.tasks.letters import LetterCopying
from lengthwise.tasks.needles import NAMES, needles, recall

LETTERS = "\n .Tabcdefghijklmnopqrstuvwxyz0123456789"
HAY = range(len(LETTERS), len(LETTERS) + 4)
TASK = LetterCopying(letters=HAY.stop)
COUNT = TASK.vocab_size


def encode(text):
    return [LETTERS.index(letter) for letter in text]


def decode(tokens):
    return "".join(LETTERS[token] for token in tokens.tolist())


def haystack(count):
    """Tokens that no fact is made of."""
    return torch.randint(HAY.start, HAY.stop, (count,), generator=torch.Generator().manual_seed(0))


def copier(n):
    """Tells what followed the last n letters, and is sure of it."""
    model = ngram_copier(TASK, n)
    with torch.no_grad():
        model.head.weight.mul_(20)
    return model


def test_every_stretch_has_one_fact_whose_tokens_are_its_question_and_answer():
    hay = haystack(350)
    given = needles(hay, encode, every=100, seed=3)
    assert [(fact.end - 1) // 100 for fact in given.facts] == [0, 1, 2]
    names, kept = set(), torch.ones(350, dtype=torch.bool)
    for fact in given.facts:
        told = decode(fact.question) + decode(fact.answer) + ".\n"
        begin = fact.end - len(told)
        assert decode(given.text[begin : fact.end]) == told
        assert len(fact.answer) == 6
        assert told[-7:-2].isdigit()
        names.add(told.split()[4])
        kept[begin : fact.end] = False
    assert len(names) == 3
    assert names <= set(NAMES)
    assert torch.equal(given.text[kept], hay[kept])
    assert not torch.equal(needles(hay, encode, every=100, seed=4).text, given.text)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [37, 1000])
def test_a_model_that_copies_by_the_last_letters_knows_every_fact(chunk):
    """Where these reach back to the name. Where they end behind it, all questions are alike and the first is told."""
    given = needles(haystack(280), encode, every=70)
    found = recall(copier(8), given, (280, 140), chunk)
    assert {length: (one.asked, one.share) for length, one in found.items()} == {140: (2, 1.0), 280: (4, 1.0)}
    assert found[280].nats < 0.01
    blind = recall(copier(3), given, (280,), chunk)[280]
    assert blind.share <= 1 / 4


@torch.no_grad()
def test_answers_are_those_of_one_whole_pass():
    torch.manual_seed(0)
    model = LanguageModel(COUNT, 16, "2*(attention(heads=2) + mlp)").eval()
    given = needles(haystack(200), encode, every=100)
    nats = []
    for fact in given.facts:
        tokens = torch.cat([given.text, fact.question, fact.answer])[None]
        logits = model(tokens[:, :-1])[0][0, -6:]
        nats.append(float(torch.nn.functional.cross_entropy(logits, fact.answer)))
    found = recall(model, given, [200], chunk=64)[200]
    assert found.nats == pytest.approx(sum(nats) / 2, rel=1e-4)
    assert found.share == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: needles(haystack(90), encode, every=100), "1 to"),
        (lambda: needles(haystack(9000), encode, every=100), "1 to"),
        (lambda: needles(haystack(90), encode, every=30), "more than the 30"),
        (lambda: recall(LanguageModel(COUNT, 8, "attention"), needles(haystack(90), encode, every=90), [91]), "got 91"),
        (lambda: recall(LanguageModel(COUNT, 8, "attention"), needles(haystack(90), encode, every=90), [5]), "got 5"),
    ],
)
def test_what_can_not_be_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
