"""Laws of every synthetic task."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.tasks import TASKS
from lengthwise.tasks.copying import Copying, DelayedCopying, SelectiveCopying
from lengthwise.tasks.cue import Cue
from lengthwise.tasks.listops import NAMES, OPERATORS, ListOps
from lengthwise.tasks.recall import (
    AssociativeRecall,
    DistantRecall,
    GapRecall,
    Induction,
    Overwriting,
    Passkey,
    SingleRecall,
)

NAMED = pytest.mark.parametrize("name", TASKS)


def one_hot(tokens, vocab_size):
    return torch.nn.functional.one_hot(tokens, vocab_size).float()


@NAMED
@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 5), extra=st.integers(0, 70), seed=st.integers(0, 2**31))
def test_any_length_has_tokens_of_the_vocabulary_and_answers_where_asked(name, batch, extra, seed):
    task = TASKS[name]()
    length = task.shortest + extra
    example = task.batch(batch, length=length, seed=seed)
    assert example.tokens.shape == example.targets.shape == example.mask.shape == (batch, length)
    assert example.tokens.min() >= 0
    assert example.tokens.max() < task.vocab_size
    asked = example.targets[example.mask]
    assert len(asked) >= batch
    assert all(int(t) in task.answers for t in asked)


@NAMED
def test_the_seed_decides(name):
    task = TASKS[name]()
    a, b, c = task.batch(4, seed=5), task.batch(4, seed=5), task.batch(4, seed=6)
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.targets, b.targets)
    assert torch.equal(a.mask, b.mask)
    assert not torch.equal(a.tokens, c.tokens)


@NAMED
def test_batches_go_on_at_any_step(name):
    task = TASKS[name]()
    whole, later = task.batches(2, seed=3), task.batches(2, seed=3, start=2)
    next(whole), next(whole)
    assert torch.equal(next(whole).tokens, next(later).tokens)


@NAMED
def test_guessing_evenly_among_the_answers_gives_chance(name):
    task = TASKS[name]()
    example = task.batch(max(50, 400 * 64 // task.length), seed=1)
    trials = 20
    guesses = np.random.default_rng(2).choice(np.array(task.answers), (trials, *example.tokens.shape))
    accuracies = [task.metric(one_hot(torch.from_numpy(g), task.vocab_size), example) for g in guesses]
    n = trials * int(example.mask.sum())
    deviation = (task.chance * (1 - task.chance) / n) ** 0.5
    assert abs(np.mean(accuracies) - task.chance) < 5 * deviation


@NAMED
def test_metric_and_loss_of_a_right_and_a_wrong_model(name):
    task = TASKS[name]()
    example = task.batch(3, seed=4)
    right = one_hot(example.targets, task.vocab_size)
    assert task.metric(right, example) == task.exact(right, example) == 1.0
    assert task.loss(1e3 * right, example) < 1e-6
    wrong = one_hot((example.targets + 1) % task.vocab_size, task.vocab_size)
    assert task.metric(wrong, example) == task.exact(wrong, example) == 0.0
    assert task.loss(torch.zeros_like(right), example).item() == pytest.approx(np.log(task.vocab_size), rel=1e-5)


@NAMED
def test_too_short_and_empty_are_refused(name):
    task = TASKS[name]()
    with pytest.raises(InputError, match=f"at least {task.shortest}"):
        task.batch(2, length=task.shortest - 1)
    with pytest.raises(InputError, match="batch"):
        task.batch(0)


@given(length=st.integers(2, 40), seed=st.integers(0, 999))
def test_copying_asks_for_the_string_again(length, seed):
    example = Copying().batch(2, length=length, seed=seed)
    n = length // 2
    first = example.tokens[:, length - 2 * n : length - n]
    assert torch.equal(example.targets[:, -n:], first)
    assert torch.equal(example.tokens[:, length - n + 1 :], first[:, :-1])


def test_selective_copying_asks_for_the_data_in_order():
    example = SelectiveCopying().batch(64, seed=0)
    for tokens, targets, mask in zip(example.tokens, example.targets, example.mask, strict=True):
        assert tokens[:32][tokens[:32] > 1].tolist() == targets[mask].tolist()
        assert (tokens[32:] == 1).all()
        assert mask.tolist() == [False] * 32 + [True] * 4


def test_associative_recall_asks_for_the_value_beside_the_key():
    task = AssociativeRecall()
    example = task.batch(32, seed=0)
    for tokens, targets, mask in zip(example.tokens, example.targets, example.mask, strict=True):
        pairs = dict(zip(tokens[0:16:2].tolist(), tokens[1:16:2].tolist(), strict=True))
        assert len(pairs) == task.pairs
        assert {int(k): int(v) for k, v in zip(tokens[mask], targets[mask], strict=True)} == pairs


@given(length=st.integers(4, 40), seed=st.integers(0, 999))
def test_single_recall_asks_for_the_value_of_a_key_that_was_shown(length, seed):
    task = SingleRecall()
    example = task.batch(3, length=length, seed=seed)
    for tokens, targets, mask in zip(example.tokens, example.targets, example.mask, strict=True):
        assert mask.tolist() == [False] * (length - 1) + [True]
        assert tokens[-2] == task.vocab_size - 1
        shown = tokens[length % 2 : -2].view(-1, 2)
        value = dict(shown.tolist())
        assert all(value[int(k)] == v for k, v in shown)
        assert value[int(tokens[-1])] == targets[-1]
        assert targets[length % 2 : -2 : 2].tolist() == shown[:, 1].tolist()


@given(length=st.integers(31, 90), seed=st.integers(0, 999))
def test_overwriting_asks_for_the_latest_value(length, seed):
    example = Overwriting().batch(3, length=length, seed=seed)
    for tokens, targets, mask in zip(example.tokens, example.targets, example.mask, strict=True):
        first = int(mask.nonzero()[0])
        latest = dict(zip(tokens[0:first:2].tolist(), tokens[1:first:2].tolist(), strict=True))
        asked = dict(zip(tokens[mask].tolist(), targets[mask].tolist(), strict=True))
        assert asked == latest
        assert len(asked) == 8


def test_overwriting_has_the_sizes_of_its_default():
    example = Overwriting().batch(8, seed=0)
    assert example.tokens.shape == (8, 64)
    assert int(example.mask.sum()) == 64
    assert (example.tokens[:, 0:16:2].sort(dim=1).values == torch.arange(8)).all()


@given(length=st.integers(3, 60), seed=st.integers(0, 999))
def test_induction_asks_for_what_followed_the_special_token(length, seed):
    example = Induction().batch(2, length=length, seed=seed)
    for tokens, targets in zip(example.tokens, example.targets, strict=True):
        places = (tokens == 0).nonzero().flatten().tolist()
        assert len(places) == 2
        assert places[1] == length - 1
        assert targets[-1] == tokens[places[0] + 1]


@given(noise=st.integers(0, 60), seed=st.integers(0, 999))
def test_distant_recall_shows_every_key_once_and_then_noise(noise, seed):
    task = DistantRecall(keys=3, values=5, noise=2)
    example = task.batch(4, length=task.shortest + noise, seed=seed)
    assert task.vocab_size == 3 + 5 + 1 + 2
    for tokens, targets in zip(example.tokens.tolist(), example.targets.tolist(), strict=True):
        shown = dict(zip(tokens[0:6:2], tokens[1:6:2], strict=True))
        assert sorted(shown) == [0, 1, 2]
        assert all(3 <= value < 8 for value in shown.values())
        assert all(9 <= token < 11 for token in tokens[6:-2])
        assert tokens[-2] == 8
        assert targets[-1] == shown[tokens[-1]]
    assert example.mask.sum(1).eq(1).all()
    logits = torch.randn(*example.tokens.shape, task.vocab_size)
    alone = torch.nn.functional.cross_entropy(logits[:, -1], example.targets[:, -1])
    assert torch.equal(task.loss(logits, example), alone)


@given(gap=st.integers(0, 60), seed=st.integers(0, 999))
def test_gap_recall_asks_for_the_value_before_the_noise(gap, seed):
    task = GapRecall(values=5, noise=3)
    example = task.batch(3, length=task.length_of(gap), seed=seed)
    assert example.tokens[:, 0].tolist() == [0] * 3
    assert example.tokens[:, -1].tolist() == [1] * 3
    assert torch.equal(example.tokens[:, 1], example.targets[:, -1])
    noise = task.is_noise(example.tokens)
    assert noise[:, 2:-1].all()
    assert int(noise.sum()) == 3 * gap
    assert not task.is_noise(torch.tensor([0, 1, *task.answers])).any()


def test_batches_of_many_lengths():
    task, lengths = GapRecall(), range(5, 30, 3)
    found = [next(batches) for batches in [task.batches_of_lengths(2, lengths, seed=4)] for _ in range(200)]
    assert {example.tokens.shape[1] for example in found} == set(lengths)
    again = task.batches_of_lengths(2, lengths, seed=4)
    assert all(torch.equal(example.tokens, next(again).tokens) for example in found[:9])


@given(extra=st.integers(0, 60), digits=st.integers(1, 6), seed=st.integers(0, 999))
def test_passkey_asks_for_the_hidden_key(extra, digits, seed):
    task = Passkey(digits=digits)
    example = task.batch(2, length=task.shortest + extra, seed=seed)
    for tokens, targets, mask in zip(example.tokens, example.targets, example.mask, strict=True):
        place = int((tokens == 0).nonzero()[0])
        assert tokens[place + 1 : place + 1 + digits].tolist() == targets[mask].tolist()
        assert int(mask.sum()) == digits
        assert tokens[-digits] == 0


@given(extra=st.integers(0, 60), memory=st.integers(1, 5), seed=st.integers(0, 999))
def test_delayed_copying_asks_for_the_first_tokens_at_the_last(extra, memory, seed):
    task = DelayedCopying(memory=memory, symbols=4, noise=3)
    example = task.batch(3, length=2 * memory + extra, seed=seed)
    shown, between, prompts = example.tokens.split([memory, extra, memory], 1)
    assert (shown < 4).all()
    assert ((between >= 4) & (between < 7)).all()
    assert (prompts == 7).all()
    assert torch.equal(example.targets[:, -memory:], shown)
    assert torch.equal(example.mask.nonzero()[:, 1].unique(), torch.arange(memory) + memory + extra)


@pytest.mark.parametrize("answered", ["first", "last"])
@given(length=st.integers(2, 60), seed=st.integers(0, 999))
def test_cue_asks_for_the_one_cue(answered, length, seed):
    task = Cue(noise=3, cues=4, answered=answered)
    example = task.batch(3, length=length, seed=seed)
    asked = 0 if answered == "first" else length - 1
    for tokens, targets, mask in zip(example.tokens, example.targets, example.mask, strict=True):
        (place,) = (tokens >= 3).nonzero().flatten().tolist()
        assert place != asked
        assert mask.nonzero().flatten().tolist() == [asked]
        assert targets[asked] == tokens[place]


@pytest.mark.parametrize("answered", ["first", "last"])
def test_cue_stands_anywhere_but_where_it_is_asked_for(answered):
    example = Cue(length=5, noise=3, cues=2, answered=answered).batch(200, seed=1)
    places = set((example.tokens >= 3).nonzero()[:, 1].tolist())
    assert places == ({1, 2, 3, 4} if answered == "first" else {0, 1, 2, 3})


def evaluate(text):
    """The value of an expression by a stack of its own."""
    stack = [[]]
    for name in text:
        if name in OPERATORS:
            stack.append([name])
        elif name == "]":
            operator, *values = stack.pop()
            stack[-1].append(OPERATORS[operator](values))
        else:
            stack[-1].append(int(name))
    return stack[0][0]


@given(length=st.integers(4, 200), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_listops_has_the_value_of_its_expression(length, seed):
    example = ListOps().batch(2, length=length, seed=seed)
    for tokens, targets in zip(example.tokens.tolist(), example.targets, strict=True):
        text = [NAMES[t] for t in tokens if NAMES[t] != " "]
        assert evaluate(text) == targets[-1]
        assert length // 2 - 2 <= len(text) <= length


def test_listops_operators():
    values = [2, 9, 4, 7]
    assert [operator(values) for operator in OPERATORS.values()] == [2, 9, 5, 2]


def test_impossible_sizes_are_refused():
    for make, message in [
        (lambda: AssociativeRecall(pairs=9, keys=8), "9 pairs"),
        (lambda: SelectiveCopying(memory=0), "memory"),
        (lambda: Copying(symbols=1), "symbols"),
        (lambda: Passkey(digits=0), "digits"),
        (lambda: GapRecall(noise=0), "noise"),
        (lambda: DistantRecall(noise=0), "noise"),
        (lambda: DelayedCopying(memory=0), "memory"),
        (lambda: DelayedCopying().batch(1, length=15), "at least 16"),
        (lambda: Cue(cues=1), "cues"),
        (lambda: Cue(answered="middle"), "middle"),
        (lambda: ListOps(depth=1, arguments=2).batch(1, length=40), "nested 1 deep"),
    ]:
        with pytest.raises(InputError, match=message):
            make()
