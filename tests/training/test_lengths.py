"""Windows of one length, the number of updates, the sweep over lengths and what it recommends."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.models.language_model import LanguageModel
from lengthwise.tasks.corpus import Corpus, Document
from lengthwise.training.lengths import (
    Arrangement,
    LengthRow,
    LengthTable,
    arrange,
    count_windows,
    length_sweep,
    recommend,
    window_batches,
)


def corpus(*sizes):
    """Documents whose tokens count up from 0."""
    ends = np.cumsum([0, *sizes])
    return Corpus(tuple(Document(str(i), np.arange(ends[i], ends[i + 1])) for i in range(len(sizes))), vocab_size=1000)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    length=st.integers(1, 20),
    windows=st.integers(1, 7),
    seed=st.integers(0, 5),
)
def test_the_windows_of_an_epoch_put_in_order_are_the_stream(sizes, length, windows, seed):
    data = corpus(*sizes)
    if len(data) < length:
        with pytest.raises(InputError, match="one window needs"):
            window_batches(data, length, windows, seed)
        return
    count = count_windows(data, length)
    epochs = -(-2 * count // windows)
    rows = torch.cat(list(islice(window_batches(data, length, windows, seed), epochs)))
    first, second = rows[:count], rows[count : 2 * count]
    in_order = first[first[:, 0].argsort()]
    torch.testing.assert_close(in_order.flatten(), data.cut(0, count * length), rtol=0, atol=0)
    assert len(data) - count * length < length
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # shuffled once


def test_windows_are_shuffled_by_the_seed():
    first, again, other = (next(window_batches(corpus(400), 4, 50, seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert (first[:, 0].diff() < 0).any()


@pytest.mark.parametrize("length", [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384])
@pytest.mark.parametrize("tokens", [10 * 1_234_567, 2**24])
def test_the_number_of_updates_is_the_formula(length, tokens):
    windows = arrange(length, tokens, per_update=64, mode="equal_windows_per_update")
    assert (windows.windows, windows.updates) == (64, int(tokens / (length * 64)))
    equal = arrange(length, tokens, per_update=16384)
    assert (equal.windows * length, equal.updates) == (16384, int(tokens / 16384))
    assert tokens - 16384 < equal.tokens <= tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 48}, "can't be cut into windows of 48"),
        ({"length": 1}, "at least 2"),
        ({"length": 32, "token_budget": 60}, "less than one update"),
        ({"length": 32, "mode": "equal"}, "unknown mode"),
        ({"length": 32, "per_update": 0}, "per_update must be at least 1"),
    ],
)
def test_an_arrangement_that_cannot_be_is_an_error(arguments, message):
    with pytest.raises(InputError, match=message):
        arrange(**{"token_budget": 10_000, "per_update": 64, **arguments})


def table(losses=(), **scores):
    lengths = (32, 128, 512)
    rows = [
        LengthRow(Arrangement(n, 1, 1), float(n), {task: values[i] for task, values in scores.items()})
        for i, n in enumerate(lengths)
    ]
    return LengthTable(tuple(reversed(rows)), frozenset(losses))


def test_the_shortest_within_the_tolerance_is_recommended():
    found = recommend(table(("nats",), right=(0.70, 0.74, 0.745), nats=(2.0, 1.9, 1.5)), {"right": 0.01, "nats": 0.1})
    assert found.by_task == {"right": 128, "nats": 512}
    assert (found.overall, found.agrees) == (512, True)


def test_where_no_length_serves_all_the_least_bad_one_is_recommended():
    found = recommend(table(("nats",), right=(0.8, 0.77, 0.6), nats=(2.0, 1.8, 1.5)), {"right": 0.01, "nats": 0.1})
    assert found.by_task == {"right": 32, "nats": 512}
    assert (found.overall, found.agrees) == (128, False)


@given(scores=st.lists(st.floats(0, 1), min_size=3, max_size=3), tolerance=st.floats(0, 1))
def test_what_is_recommended_is_within_the_tolerance_and_nothing_shorter_is(scores, tolerance):
    sweep = table(right=scores)
    chosen = recommend(sweep, tolerance).overall
    for row in sweep.rows:
        assert (sweep.shortfall("right", row) <= tolerance) >= (row.length == chosen)
        assert row.length >= chosen or sweep.shortfall("right", row) > tolerance


def test_rows_are_in_the_order_of_their_lengths_and_time_is_relative_to_the_longest():
    sweep = table(right=(1.0, 1.0, 1.0))
    assert [row.length for row in sweep.rows] == [32, 128, 512]
    assert [sweep.relative_seconds(row) for row in sweep.rows] == [1 / 16, 1 / 4, 1]


def test_a_tolerance_is_needed_for_every_task_and_is_not_negative():
    for tolerance in (-0.1, {"other": 1.0}):
        with pytest.raises(InputError, match="every task needs a tolerance"):
            recommend(table(right=(1.0, 1.0, 1.0)), tolerance)
    with pytest.raises(InputError, match="nothing to recommend"):
        recommend(LengthTable(()))


@pytest.mark.parametrize(
    ("mode", "per_update", "updates"),
    [("equal_tokens_per_update", 32, [8, 8]), ("equal_windows_per_update", 2, [16, 8])],
)
def test_a_sweep_trains_and_scores_every_length(mode, per_update, updates):
    stream = Corpus((Document("text", np.frombuffer(b"to be or not to be. " * 100, dtype=np.uint8)),))
    steps, seen = [], []

    def given(model, length):
        assert not model.training
        seen.append(length)
        return float(length)

    found = length_sweep(
        lambda length: LanguageModel(256, 16, "min_gru"),
        stream,
        [16, 8],
        256,
        {"given": given},
        mode,
        per_update=per_update,
        seed=10,
        on_step=lambda length, step, loss: steps.append((length, step)),
    )
    assert [row.arrangement.updates for row in found.rows] == updates
    assert [sum(n == length for n, _ in steps) for length in (8, 16)] == updates
    assert seen == [8, 16]
    assert [row.scores["given"] for row in found.rows] == [8.0, 16.0]
    assert all(row.seconds > 0 for row in found.rows)


@pytest.mark.parametrize(
    ("lengths", "message"), [([], "at least one"), ([8, 8], "different"), ([8, 4096], "one window needs 4096")]
)
def test_a_sweep_that_cannot_run_trains_nothing(lengths, message):
    def never(length):
        raise AssertionError

    with pytest.raises(InputError, match=message):
        length_sweep(never, corpus(1000), lengths, 4096, {}, per_update=4096)
