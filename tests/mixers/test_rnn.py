import pytest
import torch

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.mixers.rnn import GRU, LSTM

both = pytest.mark.parametrize("kind", [GRU, LSTM])


def inputs(length=12):
    return torch.randn(2, length, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@both
def test_equals_the_librarys_module(kind):
    mixer, x = kind(6).double(), inputs()
    torch.testing.assert_close(mixer(x)[0], mixer.recurrence(x)[0])


@both
@pytest.mark.parametrize("cut", [0, 1, 11, 12])
def test_goes_on_from_any_cut(kind, cut):
    mixer, x = kind(6, expansion=2).double(), inputs()
    whole, last = mixer(x)
    first, state = mixer(x[:, :cut])
    second, state = mixer(x[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(state.h, last.h)


@both
def test_documents_of_different_lengths_in_the_rows(kind):
    mixer, x = kind(6).double(), inputs()
    rows = [[3, 4, 5], [7, 5]]
    packed, last = mixer(x, None, Layout.packed(rows))
    for row, lengths in enumerate(rows):
        begin = 0
        for length in lengths:
            part = slice(begin, begin + length)
            alone, state = mixer(x[row : row + 1, part])
            torch.testing.assert_close(packed[row : row + 1, part], alone)
            begin += length
        torch.testing.assert_close(last.h[row : row + 1], state.h)


@both
def test_a_document_goes_on_from_the_state_beside_one_that_starts(kind):
    mixer, x = kind(6).double(), inputs()
    _, state = mixer(x[:, :5])
    layout = Layout(torch.tensor([[5, 6], [0, 1]]), torch.zeros(2, 2, dtype=torch.long))
    y, _ = mixer(x[:, 5:7], state, layout)
    torch.testing.assert_close(y[:1], mixer(x[:1, :7])[0][:, 5:])
    torch.testing.assert_close(y[1:], mixer(x[1:, 5:7])[0])


@both
def test_half_precision_keeps_the_state_in_float32(kind):
    y, state = kind(6).bfloat16()(inputs().bfloat16())
    assert y.dtype == torch.bfloat16
    assert state.h.dtype == torch.float32


def test_state_sizes():
    assert GRU(6, expansion=2).state_nbytes(100) == 4 * 12
    assert LSTM(6).state_nbytes(1) == 4 * 12


@both
def test_impossible_width(kind):
    with pytest.raises(InputError, match="expansion"):
        kind(6, expansion=0)
