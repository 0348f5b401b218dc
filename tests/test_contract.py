import torch

from lengthwise.contract import Layout


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
