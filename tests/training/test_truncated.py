"""Rows in pieces: the same loss and, where the model cuts its graph there too, the same gradient, in bounded memory."""

import itertools

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.models.language_model import LanguageModel
from lengthwise.training.fit import fit, next_token_loss
from lengthwise.training.truncated import GoingOn, truncated

VOCABULARY = 11


def model(layers, dim=8):
    torch.manual_seed(0)
    return LanguageModel(VOCABULARY, dim, layers).double()


def gradients(model, loss, rows):
    model.zero_grad()
    value = loss(model, rows)
    value.backward()
    return value.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("layers", "tokens"),
    [
        ("recurrent_memory(attention(heads=2) + mlp, tokens=2, segment=3, backprop=2)", 6),
        ("block_recurrent(heads=2, block=3, states=3, backprop=2)", 6),
        ("cache_previous(attention(heads=2) + min_gru, segment=3)", 3),
        ("attention(heads=2) + mlp", 100),
    ],
)
def test_where_the_model_ends_gradients_too_they_are_those_of_the_row(layers, tokens):
    made, rows = model(layers), torch.randint(VOCABULARY, (2, 21), generator=torch.Generator().manual_seed(0))
    loss, expected = gradients(made, next_token_loss, rows)
    value, got = gradients(made, truncated(tokens=tokens), rows)
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("tokens", [1, 4, 7])
def test_any_model_has_the_loss_of_the_row_and_gradients_within_a_piece(tokens):
    made, rows = model("min_gru + attention(heads=2)"), torch.randint(VOCABULARY, (2, 13))
    loss, whole = gradients(made, next_token_loss, rows)
    value, got = gradients(made, truncated(tokens=tokens), rows)
    torch.testing.assert_close(value, loss)
    assert any(not torch.allclose(a, b) for a, b in zip(got, whole, strict=True))
    expected = [torch.zeros_like(p) for p in made.parameters()]
    state = None
    for begin in range(0, 12, tokens):
        piece = rows[:, begin : begin + tokens + 1]
        going_on = GoingOn(made, state)
        part = next_token_loss(going_on, piece) * (piece.shape[1] - 1) / 12
        state = going_on.state.detach()
        for total, slope in zip(expected, torch.autograd.grad(part, list(made.parameters())), strict=True):
            total += slope
    torch.testing.assert_close(got, expected)


def test_the_memory_of_a_step_does_not_grow_with_the_pieces():
    layers = "recurrent_memory(attention(heads=2) + mlp, tokens=2, segment=16, backprop=2)"
    made, memory = model(layers, dim=32).float(), {}
    for loss in (next_token_loss, truncated(tokens=32)):
        for segments in (4, 32):
            rows = torch.randint(VOCABULARY, (1, 16 * segments + 1))
            gradients(made, loss, rows)
            memory[loss, segments] = peak_bytes(lambda loss=loss, rows=rows: loss(made, rows).backward())
    whole, pieces = (memory[loss, 32] / memory[loss, 4] for loss in dict.fromkeys(key[0] for key in memory))
    assert whole > 6
    assert pieces < 1.05


def test_fit_takes_it():
    made = model("recurrent_memory(attention(heads=2) + mlp, tokens=1, segment=4, backprop=1)")
    rows = (torch.arange(17)[None] + torch.arange(4)[:, None]) % VOCABULARY
    losses = fit(made, itertools.repeat(rows), steps=40, learning_rate=0.03, warmup=2, loss=truncated(tokens=4))
    assert losses[-1] < 0.2 * losses[0]


def test_without_gradients_it_is_a_loss_as_any():
    made, rows = model("min_gru"), torch.randint(VOCABULARY, (2, 13))
    with torch.no_grad():
        torch.testing.assert_close(truncated(tokens=5)(made, rows), next_token_loss(made, rows))
    assert all(p.grad is None for p in made.parameters())


def test_pieces_of_which_nothing_is_asked_are_read():
    """A row of which the last token alone is asked, in other pieces than the first."""
    made, rows = model("min_gru + attention(heads=2)"), torch.randint(VOCABULARY, (2, 9))

    def last(model, rows):
        return torch.nn.functional.cross_entropy(model(rows[:, :-1])[0][:, -1], rows[:, -1])

    def divide(rows, tokens):
        pieces = [rows[:, begin : begin + tokens + 1] for begin in range(0, rows.shape[1] - 1, tokens)]
        return [(piece, float(number == len(pieces) - 1)) for number, piece in enumerate(pieces)]

    value, got = gradients(made, truncated(last, tokens=4, divide=divide), rows)
    torch.testing.assert_close(value, last(made, rows).detach())
    assert any(slope.any() for slope in got)


def test_errors():
    made = model("min_gru")
    with pytest.raises(InputError, match="at least 1 token, got 0"):
        truncated(tokens=0)
    with pytest.raises(InputError, match="without a piece"):
        truncated(tokens=3)(made, torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(InputError, match="its own last state"):
        GoingOn(made)(torch.zeros(1, 2, dtype=torch.long), state=0)
