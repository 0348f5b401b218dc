import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.positions.rope import LAYOUTS, RoPE, permute_rows

DOUBLE = torch.float64


def turned(rope: RoPE, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return rope.rotate(x, x, places, places)[0]


def logits(rope: RoPE, q: torch.Tensor, k: torch.Tensor, shift: int) -> torch.Tensor:
    places = torch.arange(q.shape[1]) + shift
    q, k = rope.rotate(q, k, places, places)
    return torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5


def definition(x: torch.Tensor, places: list[float], layout: str) -> torch.Tensor:
    """The sheet's formula, channel by channel."""
    length, half = x.shape[1], x.shape[-1] // 2
    y = torch.empty_like(x)
    for t in range(length):
        for i in range(half):
            first, second = (i, i + half) if layout == "half" else (2 * i, 2 * i + 1)
            angle = torch.tensor(places[t] * 10000 ** (-2 * i / x.shape[-1]), dtype=x.dtype)
            y[:, t, :, first] = x[:, t, :, first] * angle.cos() - x[:, t, :, second] * angle.sin()
            y[:, t, :, second] = x[:, t, :, first] * angle.sin() + x[:, t, :, second] * angle.cos()
    return y


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_definition(layout):
    x, places = torch.randn(2, 4, 3, 8, dtype=DOUBLE), [0.0, 1.5, 7.0, 4000.0]
    ours = turned(RoPE(layout=layout), x, torch.tensor(places))
    torch.testing.assert_close(ours, definition(x, places, layout), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=20, deadline=None)
@given(shift=st.integers(0, 10_000), seed=st.integers(0, 1000))
def test_logits_depend_on_differences_alone(layout, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 12, 4, 16, generator=generator)
    rope = RoPE(layout=layout)
    torch.testing.assert_close(logits(rope, q, k, shift), logits(rope, q, k, 0), rtol=0, atol=1e-4)


def test_logits_depend_on_differences_alone_far_out():
    q, k = torch.randn(2, 1, 12, 4, 16)
    torch.testing.assert_close(logits(RoPE(), q, k, 10_000_000), logits(RoPE(), q, k, 0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lengths_are_kept_and_turning_back_undoes(layout):
    rope, x = RoPE(layout=layout), torch.randn(2, 6, 2, 8, dtype=DOUBLE)
    places = torch.tensor([0, 1, 5, 70, 900, 12345])
    y = turned(rope, x, places)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(turned(rope, y, -places), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_layouts_differ_by_a_permutation_of_rows(fraction):
    heads, head_dim, dim, places = 3, 8, 5, torch.arange(7)
    weight, x = torch.randn(heads * head_dim, dim, dtype=DOUBLE), torch.randn(2, 7, dim, dtype=DOUBLE)
    half = permute_rows(weight, heads, source="interleaved", target="half", fraction=fraction)
    assert not torch.equal(half, weight)
    assert torch.equal(permute_rows(half, heads, source="half", target="interleaved", fraction=fraction), weight)
    assert permute_rows(weight, heads, source="half", target="half") is weight

    def grams(layout: str, rows: torch.Tensor) -> torch.Tensor:
        q = turned(RoPE(layout=layout, fraction=fraction), (x @ rows.T).unflatten(-1, (heads, head_dim)), places)
        return torch.einsum("bihd,bjhd->bhij", q, q)

    torch.testing.assert_close(grams("half", half), grams("interleaved", weight), rtol=0, atol=1e-10)


def test_a_fraction_turns_the_first_channels_as_a_narrower_head():
    x, places = torch.randn(1, 5, 2, 16), torch.arange(5)
    y = turned(RoPE(fraction=0.25), x, places)
    assert torch.equal(y[..., 4:], x[..., 4:])
    assert torch.equal(y[..., :4], turned(RoPE(), x[..., :4], places))


def test_interpolation_divides_positions():
    x = torch.randn(1, 5, 2, 8, dtype=DOUBLE)
    torch.testing.assert_close(
        turned(RoPE(scale=4), x, torch.arange(5)), turned(RoPE(), x, torch.arange(5) / 4), rtol=0, atol=1e-12
    )


def test_gradients_flow_through_the_rotation():
    x = torch.randn(1, 3, 2, 4, dtype=DOUBLE, requires_grad=True)
    for layout in LAYOUTS:
        for fraction in (1.0, 0.5):
            rope = RoPE(layout=layout, fraction=fraction)
            assert torch.autograd.gradcheck(lambda v, rope=rope: turned(rope, v, torch.arange(3)), x)


def test_it_holds_nothing():
    assert RoPE().state_dict() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": 0}, "positive"),
        ({"scale": -1}, "positive"),
        ({"fraction": 0}, "fraction"),
        ({"fraction": 1.5}, "fraction"),
        ({"layout": "interleave"}, "interleaved"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        RoPE(**arguments)


@pytest.mark.parametrize(("head_dim", "fraction"), [(7, 1.0), (8, 0.1), (6, 0.5)])
def test_heads_that_have_no_pairs_are_refused(head_dim, fraction):
    with pytest.raises(InputError, match="pairs"):
        turned(RoPE(fraction=fraction), torch.randn(1, 2, 1, head_dim), torch.arange(2))


def test_rows_that_are_not_heads_are_refused():
    with pytest.raises(InputError, match="divide"):
        permute_rows(torch.randn(7, 2), 2, source="half", target="interleaved")
    with pytest.raises(InputError, match="interleaved"):
        permute_rows(torch.randn(8, 2), 2, source="half", target="pairs")
