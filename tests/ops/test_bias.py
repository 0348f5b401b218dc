import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.ops.bias import Bias, OfDistance, Relative, relative


@pytest.mark.parametrize("heads", [1, 3])
def test_a_tile_of_distances_passes_its_gradient_on(heads):
    bias = Relative(torch.randn(heads, 9 + 11 - 1, dtype=torch.float64), 9)
    rows, columns = slice(2, 7), slice(3, 10)
    d_logits = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    into, expected = torch.zeros_like(bias.table), torch.zeros_like(bias.table)
    bias.add_gradients([into], d_logits, rows, columns)
    Bias.add_gradients(bias, [expected], d_logits, rows, columns)
    torch.testing.assert_close(into, expected)


def far(apart, weight):
    """A function of distances with a parameter for each head."""
    return (apart * 0.3).cos()[:, None] * weight[:, None, None]


@settings(deadline=None, max_examples=40)
@given(
    queries=st.integers(1, 6),
    past=st.integers(0, 5),
    begin=st.integers(-3, 50),
    gap=st.none() | st.integers(0, 9),
    rows=st.sampled_from([1, 2]),
)
def test_a_function_of_the_distance_is_a_table_where_tokens_follow_each_other(queries, past, begin, gap, rows):
    """And the same bias wherever they are. gap: the token behind which one place is left out."""
    places = begin + torch.arange(queries + past)
    if gap is not None:
        places[gap:] += 1
    places = places.expand(rows, -1)
    weight = torch.randn(2, dtype=torch.float64)
    bias = relative(far, places[:, past:], places, 2, (weight,))
    follows = rows == 1 and bool((places.diff() == 1).all())
    assert type(bias) is (Relative if follows else OfDistance)
    torch.testing.assert_close(bias.written(), far(places[:, None] - places[:, past:, None], weight))
