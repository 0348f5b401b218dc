"""Packed rows against sequences alone, and what packers promise."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.models import LanguageModel
from lengthwise.training.fit import fit, next_token_loss
from lengthwise.training.packing import (
    PACKERS,
    Packing,
    arrival,
    divided,
    greedy,
    next_token_rows,
    packed_next_token_loss,
)
from tests.stirred import stir

quick = settings(max_examples=100, deadline=None)
lengths = st.lists(st.integers(0, 12), max_size=20)
packers = st.sampled_from([*PACKERS.values(), lambda lengths, width: greedy(lengths, width, buffer=3)])
RECURRENT = "mamba(state_dim=4) + rwkv + hyena(max_length=16) + min_gru"


def numbered(lengths):
    """Sequences in which every token is its own."""
    return list(torch.arange(1, sum(lengths) + 1).split(lengths))


def skewed(seed, count=512):
    """Lengths of which a few are long."""
    drawn = np.random.default_rng(seed).lognormal(4, 1, count)
    return drawn.clip(1, 512).astype(int).tolist()


@quick
@given(lengths=lengths, width=st.integers(12, 30), packer=packers)
def test_what_is_packed_is_unpacked(lengths, width, packer):
    sequences, packing = numbered(lengths), packer(lengths, width)
    rows = packing.pack(sequences)
    assert rows.shape == (len(packing.rows), width)
    assert all(torch.equal(a, b) for a, b in zip(packing.unpack(rows), sequences, strict=True))
    wide = [s[:, None].expand(-1, 3).float() for s in sequences]
    for a, b in zip(packing.unpack(packing.pack(wide)), wide, strict=True):
        assert a.tolist() == b.tolist()


@quick
@given(lengths=lengths, width=st.integers(12, 30), packer=packers)
def test_every_sequence_lies_in_one_row_and_no_row_is_too_full(lengths, width, packer):
    packing = packer(lengths, width)
    placed = [n for row in packing.rows for n in row]
    assert sorted(placed) == [n for n, length in enumerate(lengths) if length]
    sums = [sum(lengths[n] for n in row) for row in packing.rows]
    assert all(0 < used <= width for used in sums)
    if sums:
        assert packing.padding == pytest.approx(1 - sum(sums) / (width * len(sums)))
    else:
        assert packing.padding == 0


@quick
@given(lengths=lengths, width=st.integers(12, 30), packer=packers)
def test_the_layout_has_a_document_a_sequence_and_padding_behind_them(lengths, width, packer):
    packing = packer(lengths, width)
    layout, tokens = packing.layout(), packing.pack(numbered(lengths))
    assert layout.documents.shape == tokens.shape
    assert torch.equal(layout.padding, tokens == 0)
    firsts = {int(s[0]) for s in numbered(lengths) if len(s)}
    assert {int(t) for t in tokens[layout.starts & ~layout.padding]} == firsts


@quick
@given(lengths=lengths, width=st.integers(12, 30), packer=packers)
def test_targets_are_the_successors_in_the_same_sequence(lengths, width, packer):
    packing = packer(lengths, width)
    rows = next_token_rows(packing, numbered(lengths))
    found = sorted(zip(rows.inputs[rows.mask].tolist(), rows.targets[rows.mask].tolist(), strict=True))
    assert found == sorted(pair for s in numbered(lengths) for pair in pairwise(s.tolist()))
    assert rows.count == sum(max(n - 1, 0) for n in lengths)


@quick
@given(lengths=lengths, width=st.integers(12, 30))
def test_in_order_of_arrival_a_row_is_closed_when_the_next_does_not_fit(lengths, width):
    rows = arrival(lengths, width).rows
    placed = [n for row in rows for n in row]
    assert placed == sorted(placed)
    for row, after in pairwise(rows):
        assert sum(lengths[n] for n in row) + lengths[after[0]] > width


@quick
@given(lengths=lengths, width=st.integers(12, 30))
def test_greedily_a_row_is_closed_when_none_fits_and_is_filled_with_the_longest_first(lengths, width):
    rows = greedy(lengths, width).rows
    for i, row in enumerate(rows):
        room = width - sum(lengths[n] for n in row)
        assert all(lengths[n] > room for later in rows[i + 1 :] for n in later)
        assert [lengths[n] for n in row] == sorted((lengths[n] for n in row), reverse=True)


@quick
@given(lengths=lengths, width=st.integers(12, 30))
def test_a_buffer_of_one_is_the_order_of_arrival(lengths, width):
    assert greedy(lengths, width, buffer=1) == arrival(lengths, width)


def test_greedily_the_longest_that_fits_is_next():
    assert greedy([2, 5, 7, 4, 3], 10).rows == ((2, 4), (1, 3), (0,))
    assert greedy([6, 5, 4, 5], 10, buffer=2).rows == ((0, 2), (1, 3))
    assert arrival([6, 5, 4, 5], 10).rows == ((0,), (1, 2), (3,))


@pytest.mark.parametrize("seed", range(10))
def test_greedy_pads_less_on_skewed_lengths(seed):
    sizes = skewed(seed)
    assert greedy(sizes, 2048).padding <= arrival(sizes, 2048).padding
    assert greedy(sizes, 2048, buffer=64).padding <= arrival(sizes, 2048).padding


@quick
@given(lengths=lengths, longest=st.integers(1, 9))
def test_pieces_are_short_enough_and_together_the_sequences(lengths, longest):
    pieces = divided(lengths, longest)
    assert all(0 < end - begin <= longest for _, begin, end in pieces)
    covered = [(n, t) for n, begin, end in pieces for t in range(begin, end)]
    assert covered == [(n, t) for n, length in enumerate(lengths) for t in range(length)]
    assert arrival([end - begin for _, begin, end in pieces], longest).width == longest


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("layers", [RECURRENT, "deltanet(heads=2) + attention(heads=2)"])
def test_packed_training_is_separate_training(layers, packer):
    """Logits, loss and gradients, with sequences of no token and of one among them."""
    torch.manual_seed(0)
    model = stir(LanguageModel(16, 8, layers, position="none").double(), 0.1)  # RWKV begins silent
    sequences = [torch.randint(16, (n,)) for n in (5, 1, 0, 12, 3, 1, 7)]
    packing = PACKERS[packer]([len(s) for s in sequences], 12)
    rows = next_token_rows(packing, sequences)
    loss = packed_next_token_loss(model, rows)
    packed = torch.autograd.grad(loss, list(model.parameters()))
    counts = [len(s) - 1 for s in sequences if len(s) > 1]
    alone = sum(next_token_loss(model, s[None]) * (len(s) - 1) for s in sequences if len(s) > 1) / sum(counts)
    torch.testing.assert_close(loss, alone, rtol=1e-10, atol=0)
    for a, b in zip(packed, torch.autograd.grad(alone, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    logits = packing.unpack(model(rows.inputs, None, rows.layout)[0])
    for found, s in zip(logits, sequences, strict=True):
        torch.testing.assert_close(found, model(s[None])[0][0], rtol=1e-8, atol=1e-10)


def test_packed_rows_train_a_model():
    torch.manual_seed(0)
    sequences = [(torch.arange(n) + n) % 7 for n in (9, 3, 6, 12, 4)]
    rows = next_token_rows(greedy([len(s) for s in sequences], 12), sequences)
    model = LanguageModel(7, 16, "mamba(state_dim=4)", position="none")
    losses = fit(
        model, iter([rows] * 100), steps=100, learning_rate=1e-2, warmup=5, weight_decay=0.0,
        loss=packed_next_token_loss,
    )  # fmt: skip
    assert losses[-1] < 0.1 < 1 < losses[0]


def test_a_selection_keeps_the_numbers():
    sizes = [4, 3, 2, 5]
    packing = arrival(sizes, 7)
    assert packing.rows == ((0, 1), (2, 3))
    last = packing.select([1])
    sequences = numbered(sizes)
    rows = last.pack({2: sequences[2], 3: sequences[3]})
    assert torch.equal(rows, packing.pack(sequences)[1:])
    assert [part.tolist() for part in last.unpack(rows)] == [[], [], *(s.tolist() for s in sequences[2:])]


def test_empty_documents_take_no_place():
    with_empty, without = Layout.packed([[0, 3, 0, 0, 2, 0], [5]]), Layout.packed([[3, 2], [5]])
    assert torch.equal(with_empty.positions, without.positions)
    assert torch.equal(with_empty.starts, without.starts)


@pytest.mark.parametrize("packer", PACKERS.values())
def test_what_has_no_room_is_refused(packer):
    with pytest.raises(InputError, match="sequence 1 has 9 tokens and a row room for 8; clip it, divide it"):
        packer([3, 9], 8)
    with pytest.raises(InputError, match="at least 1 token, got 0"):
        packer([], 0)


def test_impossible_arguments():
    with pytest.raises(InputError, match="buffer must be at least 1"):
        greedy([1], 2, buffer=0)
    with pytest.raises(InputError, match="at least 1 token, got 0"):
        divided([1], 0)
    with pytest.raises(InputError, match="packed with 2 tokens, and has 3"):
        Packing(((0,),), (2,), 4).pack([torch.arange(3)])


def test_rows_without_anything_to_predict_are_refused():
    rows = next_token_rows(arrival([1, 1, 0], 4), [torch.tensor([1]), torch.tensor([2]), torch.tensor([]).long()])
    with pytest.raises(InputError, match="no document of these rows has a second token"):
        packed_next_token_loss(LanguageModel(4, 8, "min_gru"), rows)
