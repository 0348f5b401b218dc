"""Rows at different places of their segments: each as it would be alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.contract import Layout, state_nbytes
from lengthwise.errors import InputError
from lengthwise.mixers.segments import OutOfStep
from lengthwise.models.build import build
from lengthwise.models.states import load_state, save_state
from tests.stepping import in_pieces, token_by_token
from tests.stirred import stir

DIM = 8
MODULES = {
    "memory": "recurrent_memory(attention(heads=2) + mlp, tokens=2, segment=4)",
    "cache": "cache_previous(attention(heads=2, position=rope) + mamba, segment=3, segments=2, backprop=none)",
    "blocks": "block_recurrent(heads=2, block=4, states=3)",
}


def module(name):
    torch.manual_seed(0)
    return stir(build(MODULES[name], dim=DIM).double(), 0.1)


def alone(made, x):
    """One row, token by token."""
    return token_by_token(made, x[None])[0][0]


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_left_padded_rows_decode_as_each_alone(name):
    made, lengths = module(name), [5, 11, 1, 7]
    torch.manual_seed(1)
    texts = [torch.randn(n + 6, DIM, dtype=torch.float64) for n in lengths]
    x = torch.zeros(4, 11, DIM, dtype=torch.float64)
    for row, text, length in zip(x, texts, lengths, strict=True):
        row[11 - length :] = text[:length]
    y, state = made(x, None, Layout.padded(lengths))
    assert isinstance(state, OutOfStep)
    outputs = [[row[11 - n :]] for row, n in zip(y, lengths, strict=True)]
    for step in range(6):
        token = torch.stack([text[n + step] for text, n in zip(texts, lengths, strict=True)])[:, None]
        y, state = made(token, state)
        for row, got in zip(y, outputs, strict=True):
            got.append(row)
    for got, text in zip(outputs, texts, strict=True):
        torch.testing.assert_close(torch.cat(got), alone(made, text))


@pytest.mark.parametrize("name", MODULES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
@torch.no_grad()
def test_packed_rows_cut_anywhere_give_each_document_alone(name, data):
    made = module(name)
    rows = data.draw(st.lists(st.lists(st.integers(1, 11), min_size=1, max_size=4), min_size=1, max_size=3))
    layout = Layout.packed(rows)
    width = layout.positions.shape[1]
    cuts = sorted(data.draw(st.lists(st.integers(0, width), max_size=4)))
    x = torch.randn(len(rows), width, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, _ = in_pieces(made, x, cuts, layout=layout)
    for r, row in enumerate(rows):
        begin = 0
        for length in row:
            torch.testing.assert_close(y[r, begin : begin + length], alone(made, x[r, begin : begin + length]))
            begin += length
        assert not y[r, begin:].any()


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_states_out_of_step_are_values_that_can_be_chosen_and_written(name, tmp_path):
    made = module(name)
    x = torch.randn(3, 12, DIM, dtype=torch.float64)
    layout = Layout.packed([[12], [7, 5], [2, 10]])
    _, state = made(x, None, layout)
    assert isinstance(state, OutOfStep)
    more = torch.randn(3, 5, DIM, dtype=torch.float64)
    expected, _ = made(more, state)
    torch.testing.assert_close(made(more, state)[0], expected)
    index = torch.tensor([2, 0, 0, 1])
    torch.testing.assert_close(made(more[index], state.select(index))[0], expected[index])
    save_state(state, tmp_path / "state.safetensors")
    assert torch.equal(made(more, load_state(tmp_path / "state.safetensors")[0])[0], expected)


@torch.no_grad()
def test_rows_that_come_in_step_again_share_a_state():
    made = module("memory")
    x = torch.randn(2, 12, DIM, dtype=torch.float64)
    _, state = made(x, None, Layout.packed([[12], [7, 5]]))
    assert isinstance(state, OutOfStep)
    _, state = made(x[:, :8], state, Layout.packed([[8], [3, 5]]))
    assert isinstance(state, OutOfStep)
    _, state = made(x[:, :6], state, Layout.packed([[1, 5], [1, 5]]))
    assert not isinstance(state, OutOfStep)
    assert state_nbytes(state) == state_nbytes(made(x[:, :5])[1])


def test_no_tokens_at_all():
    made = module("memory")
    x = torch.randn(2, 3, DIM, dtype=torch.float64)
    y, state = made(x[:, :0], None, Layout.packed([[], []]))
    assert y.shape == (2, 0, DIM)
    torch.testing.assert_close(made(x, state)[0], made(x)[0])
    _, state = made(x, None, Layout.padded([1, 3]))
    y, after = made(x[:, :0], state)
    assert y.shape == (2, 0, DIM)
    torch.testing.assert_close(made(x, after)[0], made(x, state)[0])
    y, state = made(x[:0])
    assert y.shape == (0, 3, DIM)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("recurrent_memory(mlp, segment=0)", "a segment must have at least 1 token, got 0"),
        ("cache_previous(mlp, backprop=0)", "backprop counts segments and must be at least 1, got 0"),
    ],
)
def test_sizes_that_no_segment_has(expression, message):
    with pytest.raises(InputError, match=message):
        build(expression, dim=DIM)
