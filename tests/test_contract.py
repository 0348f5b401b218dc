import pytest
import torch

from lengthwise.contract import Layout
from lengthwise.errors import InputError


def test_a_layout_from_where_documents_begin():
    starts = torch.tensor([[True, False, False, True, True], [False, False, True, False, False]])
    layout = Layout.begun(starts)
    assert torch.equal(layout.starts, starts)
    assert layout.positions.tolist() == [[0, 1, 2, 0, 0], [1, 2, 0, 1, 2]]
    assert not layout.padding.any()


def test_tokens_before_the_first_start_go_on_with_the_states_document():
    starts = torch.zeros(3, 4, dtype=torch.bool)
    layout = Layout.begun(starts, seen=torch.tensor([0, 1, 9]))
    assert layout.positions[:, 0].tolist() == [0, 1, 9]
    assert layout.starts[:, 0].tolist() == [True, False, False]  # after no token a document begins
    assert not layout.starts[:, 1:].any()


def test_a_row_without_tokens():
    assert Layout.begun(torch.zeros(2, 0, dtype=torch.bool)).positions.shape == (2, 0)


MARKED = torch.tensor([[True, False, False, True], [False, True, False, False]])
MOVES = {
    "slice": (lambda layout: layout.slice(1, 3), MARKED[:, 1:3]),
    "select": (lambda layout: layout.select(torch.tensor([1, 0, 1])), MARKED[[1, 0, 1]]),
    "reversed": (lambda layout: layout.reversed(), MARKED.flip(1)),
    "to": (lambda layout: layout.to("cpu"), MARKED),
}


@pytest.mark.parametrize("move", MOVES)
def test_marks_move_with_their_tokens(move):
    layout = Layout.packed([[3, 1], [2]])
    assert layout.marked is None
    moved, expected = MOVES[move]
    after = moved(layout.mark(MARKED))
    assert after.marked.equal(expected)
    assert after.positions.equal(moved(layout).positions)
    assert moved(layout).marked is None


def test_marking_again_replaces_the_marks():
    layout = Layout.padded([2, 4]).mark(MARKED)
    again = layout.mark(~MARKED)
    assert again.marked.equal(~MARKED)
    assert layout.marked.equal(MARKED)
    assert again.documents.equal(layout.documents)


@pytest.mark.parametrize(
    ("positions", "documents", "message"),
    [
        ([[0, -1]], [[0, 0]], "count from 0, got -1 for token 1 of row 0"),
        ([[0, 1, 2], [4, 5, 5]], [[0, 0, 0], [1, 1, 1]], "token 2 of row 1 is at position 5 after 5"),
        ([[0, 2]], [[3, 3]], "position 2 after 0"),
    ],
)
def test_positions_that_cannot_be_are_refused(positions, documents, message):
    with pytest.raises(InputError, match=message):
        Layout(torch.tensor(positions), torch.tensor(documents))


def test_padding_may_have_any_position_and_documents_may_go_on_or_begin_anew():
    Layout(torch.tensor([[-7, 9, 0, 1, 5, 0, 1]]), torch.tensor([[-1, -1, 0, 0, 1, 1, 1]]))
