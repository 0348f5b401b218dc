from dataclasses import dataclass
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lengthwise.caches.documents import DocumentState, by_document
from lengthwise.contract import Layout


@dataclass(frozen=True)
class Seen(DocumentState):
    """All inputs of the document, and its last one a second time where there is one."""

    inputs: Tensor
    last: Tensor
    position: Tensor | int = 0

    def sizes(self, position):
        return [position, min(position, 1)]


def step(state, x):
    """The sum of the document so far, for rows that are equally far."""
    assert state.inputs.shape[1] == state.position
    inputs = torch.cat([state.inputs, x], 1)
    return inputs.cumsum(1)[:, state.position :], Seen(inputs, inputs[:, -1:], inputs.shape[1])


ROWS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(ROWS, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 12), max_size=4))
def test_documents_of_any_length_cut_anywhere(rows, cuts):
    layout = Layout.packed(rows)
    batch, length = layout.documents.shape
    x = torch.arange(1.0, batch * length + 1).view(batch, length)
    state, outputs = Seen(x[:, :0], x[:, :0]), []
    for begin, end in pairwise([0, *sorted(min(cut, length) for cut in cuts), length]):
        y, state = by_document(step, state, [x[:, begin:end]], layout.slice(begin, end))
        outputs.append(y)
    y = torch.cat(outputs, 1)
    for r, row in enumerate(rows):
        begin = 0
        for size in row:
            assert torch.equal(y[r, begin : begin + size], x[r, begin : begin + size].cumsum(0))
            begin += size
        left = row[-1] if begin == length else 0  # nothing is left behind padding
        one = (
            state.select(torch.tensor([r])) if isinstance(state.position, Tensor) else state.at(left, torch.tensor([r]))
        )
        assert int(one.position) == left
        kept = one.at(left)
        assert torch.equal(kept.inputs[0], x[r, length - left :])
        assert kept.last.shape[1] == min(left, 1)


def test_rows_that_meet_again_are_one_batch():
    """With the state of each cut to what it is."""
    x = torch.ones(2, 7)
    _, state = by_document(step, Seen(x[:, :0], x[:, :0]), [x], Layout.packed([[4, 3], [2, 5]]))
    assert state.position.tolist() == [3, 5]
    _, state = by_document(step, state, [x[:, :1]], Layout(torch.tensor([[3], [0]]), torch.tensor([[0], [1]])))
    assert state.position.tolist() == [4, 1]
    _, state = by_document(step, state, [x[:, :2]], Layout.packed([[2], [2]]))
    assert state.position == 2
    assert state.inputs.shape == (2, 2)


def test_gradients_reach_each_document_from_what_follows_it():
    x = torch.ones(2, 6, requires_grad=True)
    _, state = by_document(step, Seen(x[:, :0], x[:, :0]), [x], Layout.packed([[2, 4], [5, 1]]))
    y, _ = by_document(step, state, [x.detach()[:, :1]])
    y.sum().backward()
    assert x.grad.tolist() == [[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]]
