import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.tasks import DuplicateNgram, LetterCopying, PhoneBook, PrefixLookup, SuffixLookup

SEEDS = st.integers(0, 2**31)
KINDS = {
    "copying": LetterCopying(),
    "duplicate": DuplicateNgram(ngram=2),
    "prefix": PrefixLookup(answer=2),
    "suffix": SuffixLookup(ngram=3),
    "phone book": PhoneBook(),
}
ALL = pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)


def texts(task, count, seed):
    """Whole examples without padding, and their answers with the end."""
    example = task.alone(count, seed=seed)
    for tokens, targets, mask in zip(example.tokens, example.targets, example.mask, strict=True):
        length = int((tokens != task.padding).sum())
        yield [*tokens[:length].tolist(), task.end], targets[mask].tolist()


def places(text, part):
    return [i for i in range(len(text) - len(part) + 1) if text[i : i + len(part)] == part]


@ALL
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_an_example_is_as_long_as_it_says_and_asks_for_its_end(task, seed):
    sizes = set()
    for text, answer in texts(task, 20, seed):
        assert text[-len(answer) :] == answer
        assert answer[-1] == task.end
        assert text[0] == task.begin
        sizes.add(len(text))
    assert sizes <= {task.tokens_of(n) for n in range(task.fewest, task.most + 1)}
    assert task.vocab_size == (40 if isinstance(task, PhoneBook) else 30)


@ALL
def test_rows_are_full_of_examples_and_the_last_one_is_cut(task):
    """Each example of a row asks for all of its answer; what is cut asks for nothing."""
    example = task.batch(20, seed=3)
    for tokens, targets, mask in zip(example.tokens, example.targets, example.mask, strict=True):
        line = [*tokens.tolist(), int(targets[-1])]
        assert torch.equal(tokens[1:], targets[:-1])
        assert task.padding not in line
        begins = [i for i, token in enumerate(line) if token == task.begin]
        assert begins[0] == 0
        for begin, end in zip(begins, [*begins[1:], None], strict=True):
            asked = mask[max(begin - 1, 0) : None if end is None else end - 1].tolist()
            own = line[begin:end]
            whole = len(own) in {task.tokens_of(n) for n in range(task.fewest, task.most + 1)} and own[-1] == task.end
            assert any(asked) or end is None
            if end is not None:
                assert whole
            assert not any(asked) or own[-1] == task.end
        assert mask.any()


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, most=st.integers(3, 30))
def test_copying_asks_for_the_string(seed, most):
    task = LetterCopying(fewest=3, most=most)
    for text, answer in texts(task, 4, seed):
        n = len(answer) - 1
        assert text == [task.begin, *answer[:-1], task.separator, *answer]
        assert 3 <= n <= most
        assert all(letter < 26 for letter in answer[:-1])


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, ngram=st.integers(1, 4), extra=st.integers(0, 9))
def test_two_places_have_the_same_letters_and_go_on_differently(seed, ngram, extra):
    size = 2 * ngram + 1 + extra
    task = DuplicateNgram(ngram=ngram, fewest=size, most=size)
    for text, answer in texts(task, 4, seed):
        string = answer[:-1]
        assert text == [task.begin, *string, task.separator, *answer]
        inside = range(size - ngram)
        pairs = [(i, j) for i in inside for j in places(string, string[i : i + ngram]) if i + ngram <= j in inside]
        assert any(string[i + ngram] != string[j + ngram] for i, j in pairs)


def test_both_places_of_an_ngram_can_be_any():
    task, found = DuplicateNgram(ngram=2, fewest=7, most=7, letters=1000), set()
    for _, answer in texts(task, 300, 0):
        string = answer[:-1]
        found |= {(i, j) for i in range(6) for j in range(i + 2, 6) if string[i : i + 2] == string[j : j + 2]}
    assert found == {(i, j) for i in range(5) for j in range(i + 2, 5)}


@pytest.mark.parametrize("kind", [PrefixLookup, SuffixLookup])
@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, ngram=st.integers(1, 4), answer=st.integers(1, 3), extra=st.integers(0, 12))
def test_lookups_ask_for_what_follows_the_only_place(kind, seed, ngram, answer, extra):
    task = kind(ngram=ngram, answer=answer, fewest=ngram + answer, most=ngram + answer + extra)
    for text, asked in texts(task, 4, seed):
        prompt = text[1 : len(text) - len(asked)]
        at = prompt.index(task.separator)
        first, second = prompt[:at], prompt[at + 1 :]
        gram, string = (first, second[:-1]) if kind is PrefixLookup else (second, first)
        assert len(gram) == ngram
        assert kind is SuffixLookup or second[-1] == task.separator
        (place,) = places(string, gram)
        assert string[place + ngram : place + ngram + answer] == asked[:-1]


def test_what_is_looked_up_can_stand_anywhere():
    task, found = SuffixLookup(ngram=2, fewest=6, most=6), set()
    for text, _ in texts(task, 200, 0):
        found |= set(places(text[1:7], text[8:10]))
    assert found == {0, 1, 2, 3}


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, solved=st.integers(0, 3), lines=st.integers(4, 9))
def test_phone_books_answer_other_names_first(seed, solved, lines):
    task = PhoneBook(fewest=lines, most=lines, solved=solved, name=2, digits=3)
    for text, answer in texts(task, 4, seed):
        at = text.index(task.separator)
        book = np.array(text[1:at]).reshape(lines, 6)
        assert (book[:, -1] == task.end).all()
        numbers = {tuple(line[:2]): line[2:5].tolist() for line in book}
        assert len(numbers) == lines
        assert all(letter < 26 for name in numbers for letter in name)
        asked = np.array(text[at + 1 :]).reshape(solved + 1, 6)
        assert len({tuple(line[:2]) for line in asked}) == solved + 1
        assert all(numbers[tuple(line[:2])] == line[2:5].tolist() for line in asked)
        assert [*asked[-1, 2:]] == answer
        assert all(task.letters <= digit < task.end for digit in answer[:-1])


def test_one_example_a_row_is_padded_on_the_right():
    task = LetterCopying(fewest=2, most=9)
    example = task.alone(40, seed=0)
    there = example.tokens != task.padding
    assert there.sum(1).unique().numel() > 3
    assert (there.long().diff(dim=1) <= 0).all()
    assert not (example.mask & ~there).any()
    exact = LetterCopying(fewest=7, most=7)
    assert exact.alone(5).tokens.shape == exact.batch(5, length=exact.shortest).tokens.shape == (5, 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LetterCopying(letters=1), "letters"),
        (lambda: LetterCopying(fewest=0), "fewest"),
        (lambda: LetterCopying(fewest=8, most=7), "most must be at least 8"),
        (lambda: DuplicateNgram(ngram=3, fewest=6), "fewest must be at least 7"),
        (lambda: DuplicateNgram(ngram=0), "ngram"),
        (lambda: SuffixLookup(answer=0), "answer"),
        (lambda: PrefixLookup(ngram=3, answer=3), "fewest must be at least 6"),
        (lambda: SuffixLookup(letters=2, ngram=1, fewest=60, most=60).alone(1), "came once only"),
        (lambda: PhoneBook(solved=4, fewest=4), "fewest must be at least 5"),
        (lambda: PhoneBook(letters=2, name=2, most=5), "fewer than 5 names"),
        (lambda: LetterCopying().batch(1, length=41), "at least 42"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
