import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.generation.sample import generate
from lengthwise.systems import repeat_after_me
from lengthwise.systems.experiments import parameters
from lengthwise.systems.repeat_after_me import (
    ARMS,
    Outcome,
    best_accuracy,
    better,
    counting_bound,
    needed,
    ngram_copier,
    summary,
    unique_ngrams,
)
from lengthwise.systems.system import Run
from lengthwise.tasks import DuplicateNgram, LetterCopying, SuffixLookup


@pytest.fixture
def small(monkeypatch):
    for name, value in {"STEPS": 2, "EVERY": 1, "BATCH": 2, "COPIED": 2, "STRING": 40, "STRINGS": 5}.items():
        monkeypatch.setattr(repeat_after_me, name, value)


def copied(model, example):
    with torch.no_grad():
        return (model(example.tokens)[0].argmax(-1) == example.targets) | ~example.mask


@settings(max_examples=12, deadline=None)
@given(n=st.integers(1, 6), letters=st.integers(2, 26), length=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_set_weights_copy_every_string_without_an_ngram_that_comes_twice(n, letters, length, seed):
    task = LetterCopying(letters=letters, fewest=length, most=length)
    example = task.alone(5, seed=seed)
    unique = unique_ngrams(example.tokens[:, 1 : length + 1], n)
    assert copied(ngram_copier(task, n), example)[unique].all()


def test_long_strings_are_copied_exactly():
    """Of strings of 200 letters, fewer than 200² / 26⁵ have a 5-gram that comes twice."""
    task = LetterCopying(fewest=200, most=200)
    example = task.alone(40, seed=5)
    unique = unique_ngrams(example.tokens[:, 1:201], 5)
    assert unique.sum() >= 38
    assert copied(ngram_copier(task, 5), example)[unique].all()


def test_the_copier_writes_from_its_own_state():
    task = LetterCopying(fewest=30, most=30)
    example = task.alone(1, seed=7)
    prompt, answer = example.tokens[0, :32], example.targets[0, -31:]
    written = generate(ngram_copier(task, 4), prompt, max_tokens=31, temperature=0)
    assert list(written) == answer.tolist()


def test_an_ngram_that_comes_twice_misleads_the_copier():
    task = DuplicateNgram(ngram=3, fewest=40, most=40)
    example = task.alone(20, seed=0)
    assert not copied(ngram_copier(task, 3), example).all(1).any()
    assert copied(ngram_copier(task, 8), example).all()


def test_the_copier_looks_up_what_followed_too():
    task = SuffixLookup(ngram=3, answer=4, fewest=30, most=30)
    example = task.alone(30, seed=0)
    right = copied(ngram_copier(task, 3), example)
    letters = example.mask.nonzero()[:, 1].view(30, 5)[:, :4]
    repeated = ~unique_ngrams(example.tokens[:, 1:31], 3)
    assert right.gather(1, letters)[~repeated].all()


def test_where_ngrams_come_twice():
    strings = torch.tensor([[1, 2, 3, 1, 2], [1, 2, 3, 2, 1], [1, 1, 1, 2, 3]])
    assert unique_ngrams(strings, 2).tolist() == [False, True, False]
    assert unique_ngrams(strings, 1).tolist() == [False, False, False]
    assert unique_ngrams(strings, 3).tolist() == [True, True, True]


@pytest.mark.parametrize(("states", "letters", "length"), [(1, 2, 3), (2, 2, 2), (4, 2, 3), (3, 2, 3), (2, 3, 2)])
def test_no_model_with_few_states_beats_the_bound(states, letters, length):
    assert best_accuracy(states=states, letters=letters, length=length) == counting_bound(
        states, letters=letters, length=length
    )


def test_the_best_of_all_models_by_a_plain_loop():
    """All ways in which two states can follow each other, for strings of two letters."""
    best = 0
    for table in itertools.product(range(2), repeat=4):
        ends = {table[2 * table[a] + b] for a, b in itertools.product(range(2), repeat=2)}
        best = max(best, len(ends))
    assert best_accuracy(states=2, letters=2, length=2) == best / 4


def test_the_bound_is_a_share():
    assert counting_bound(4, letters=2, length=3) == 0.5
    assert counting_bound(2.0**64, letters=26, length=4) == 1.0


def test_models_have_about_the_same_size():
    sizes = [parameters(repeat_after_me.build(name)) for name in ARMS]
    assert max(sizes) / min(sizes) < 1.15


def test_learning_rates_are_compared_by_medians():
    slow = summary([Outcome(300, 0.99, {12: 0.9}), Outcome(math.inf, 0.5, {12: 1.0}), Outcome(200, 0.97, {12: 0.2})])
    assert (slow.steps, slow.peak, slow.right) == (300, 0.97, {12: 0.9})
    fast, worse = Outcome(250, 1.0, {12: 0.1}), Outcome(300, 1.0, {12: 0.8})
    assert max([worse, slow, fast], key=better) is fast
    assert max([worse, slow], key=better) is slow


@pytest.mark.parametrize(
    ("ours", "theirs", "ratio", "holds"),
    [(200, 400, 2.0, True), (200, 350, 1.75, False), (800, math.inf, 1.5, True), (math.inf, math.inf, 0.0, False)],
)
def test_who_never_learns_needs_more_than_who_does(ours, theirs, ratio, holds):
    figure = needed(ours, theirs, "one seed")
    assert figure.measured == pytest.approx(ratio)
    assert figure.holds is holds


def test_every_figure_is_measured(small):
    told = []
    figures = list(repeat_after_me.reproduce(Run(seeds=(10, 11), progress=lambda _, fraction: told.append(fraction))))
    assert len(figures) == 2 + 3 + 3 * 4 + 3
    assert [f.holds for f in figures[:2]] == [True, True]
    assert [f.holds for f in figures[-3:-1]] == [False, False]
    assert told == sorted(told)
    assert told[-1] == 1
