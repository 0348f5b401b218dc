"""A cache of previous segments: what is seen, what has a gradient, and what is kept."""

import pytest
import torch

from lengthwise import laws
from lengthwise.contract import state_nbytes
from lengthwise.errors import InputError
from lengthwise.models.build import build

DIM = 8


def made(expression):
    torch.manual_seed(0)
    return build(expression, dim=DIM).double()


def dense(layer, x, seen):
    """A pre-norm layer of attention in which token i sees j where `seen` says so."""
    part = layer.part
    q, k, v = part.project(layer.norm(x))
    logits = torch.einsum("bihd,bjhd->bhij", q, k) / part.head_dim**0.5
    p = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return x + part.o_proj(torch.einsum("bhij,bjhd->bihd", p, v).flatten(2))


@pytest.mark.parametrize("segments", [1, 2])
@torch.no_grad()
def test_a_token_sees_its_segment_and_those_before_it(segments):
    module = made(f"cache_previous(2*attention(heads=2), segment=3, segments={segments})")
    x = torch.randn(2, 14, DIM, dtype=torch.float64)
    place = torch.arange(14)
    behind = place[:, None] // 3 - place // 3
    seen = (place <= place[:, None]) & (behind <= segments)
    expected = x
    for layer in module.stack.layers:
        expected = dense(layer, expected, seen)
    torch.testing.assert_close(module(x)[0], expected)


@torch.no_grad()
def test_one_segment_is_the_layers_alone():
    module = made("cache_previous(2*(attention(heads=2) + mlp), segment=6)")
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    torch.testing.assert_close(module(x)[0], module.stack(x)[0])


@pytest.mark.parametrize("position", ["rope", "alibi", "t5(heads=2)"])
@torch.no_grad()
def test_positions_go_on_through_the_document(position):
    """In a window no longer than a segment the cache is all that is needed."""
    inside = f"attention(heads=2, window=4, position={position})"
    module = made(f"cache_previous({inside}, segment=4)")
    x = torch.randn(1, 15, DIM, dtype=torch.float64)
    torch.testing.assert_close(module(x)[0], module.stack(x)[0])


@pytest.mark.parametrize(
    ("backprop", "reached"), [("1", [False, False, False, True]), ("2", [False, False, True, True])]
)
def test_what_is_kept_has_no_gradient(backprop, reached):
    module = made(f"cache_previous(attention(heads=2) + min_gru, segment=3, segments=3, backprop={backprop})")
    x = torch.randn(1, 12, DIM, dtype=torch.float64, requires_grad=True)
    y, _ = module(x)
    y[:, 9:].square().sum().backward()
    assert [bool(piece.any()) for piece in x.grad.split(3, 1)] == reached
    with torch.no_grad():
        changed = x.detach().clone()
        changed[:, 0] += 1
        assert (module(changed)[0] - y)[:, 9:].abs().max() > 1e-6  # and is seen all the same


@pytest.mark.parametrize(
    "expression",
    [
        "cache_previous(2*(attention(heads=2) + mlp), segment=3, segments=2)",
        "cache_previous(attention(heads=2, window=5) + mamba + chunked_attention(heads=2, chunk=4), segment=6)",
    ],
)
@torch.no_grad()
def test_bytes_of_any_length(expression):
    module = made(expression).float()
    for length in range(25):
        assert state_nbytes(module(torch.randn(2, length, DIM))[1]) == 2 * module.state_nbytes(length), length


def test_reach():
    assert made("cache_previous(2*(attention(heads=2) + mlp), segment=3, segments=2)").receptive_field == 15
    assert made("cache_previous(attention(heads=2) + mamba, segment=3)").receptive_field is None
    layers = "cache_previous(2*attention(heads=2), segment=3)"
    laws.check(lambda dim: build(layers, dim=dim), dim=DIM, laws=["causal", "receptive_field"])


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("cache_previous(mamba, segment=0)", "at least 1 token, got 0"),
        ("cache_previous(mamba, segments=0)", "must be at least 1, got 0"),
        ("cache_previous(mamba, backprop=0)", "at least 1, got 0"),
        ("cache_previous(attention(causal=false))", "needs layers that are causal"),
        ("cache_previous(hyena)", "Hyena can't"),
        ("cache_previous(attention(pattern=strided(4)))", "Attention can't"),
        ("cache_previous(segment=3)", "takes layers"),
    ],
)
def test_errors(expression, message):
    with pytest.raises(InputError, match=message):
        build(f"mlp + {expression}", dim=DIM)
