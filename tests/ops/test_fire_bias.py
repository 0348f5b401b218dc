import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.ops.attention import attention
from lengthwise.ops.backend import use
from lengthwise.ops.fire_bias import FireBias
from lengthwise.ops.patterns import causal, full, window

HEADS = 3


def make(q_positions, k_positions, kinks, c=0.3, dtype=torch.float64, seed=0):
    """A continuous bias: its slopes are drawn, and each offset makes it meet its neighbour at the kink."""
    torch.manual_seed(seed)
    kinks = torch.tensor(sorted(kinks), dtype=dtype)
    slopes = torch.randn(len(kinks) + 1, HEADS, dtype=dtype)
    jumps = -slopes.diff(dim=0) * kinks[:, None]
    offsets = torch.cat([torch.randn(1, HEADS, dtype=dtype), jumps]).cumsum(0)
    rate = 0.5 * torch.rand(q_positions.shape, dtype=dtype) + 0.1
    given = [x.requires_grad_() for x in (torch.tensor(c, dtype=dtype), rate, slopes, offsets)]
    return FireBias(*given, kinks, q_positions, k_positions)


def agree(bias, queries=slice(None), keys=slice(None), batch=1, tolerance=1e-12):
    """The kernels and the definition: value, gradients through autograd, and gradients of a tile."""
    found = []
    for form in ("numba", "reference"):
        with use(form):
            tile = bias.tile(queries, keys)
            torch.manual_seed(1)
            weights = torch.randn(batch, *tile.shape[1:], dtype=tile.dtype)
            into = [torch.zeros_like(x) for x in bias.inputs]
            bias.over([x.detach() for x in bias.inputs]).add_gradients(into, weights, queries, keys)
            found.append([tile, *torch.autograd.grad((tile * weights).sum(), bias.inputs), *into])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    for direct, through in zip(found[0][1:5], found[0][5:], strict=True):
        torch.testing.assert_close(direct, through)


RUNS = st.lists(st.tuples(st.integers(-4, 30), st.integers(1, 9)), min_size=1, max_size=4)
KINKS = st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(runs=RUNS, queries=st.lists(st.integers(0, 30), min_size=1, max_size=5), kinks=KINKS, data=st.data())
def test_kernels_equal_the_definition_for_keys_anywhere(runs, queries, kinks, data):
    k_positions = torch.cat([torch.arange(begin, begin + size) for begin, size in runs])[None]
    bias = make(torch.tensor([queries]), k_positions, kinks)
    first = data.draw(st.integers(0, k_positions.shape[1] - 1))
    agree(bias)
    agree(bias, slice(0, 3), slice(first, first + 5), batch=2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_of_their_own(dtype):
    q_positions, k_positions = torch.tensor([[3, 4], [1, 2]]), torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    agree(make(q_positions, k_positions, [0.1, 0.4], dtype=dtype), batch=2, tolerance=tolerance)
    agree(make(q_positions[:1], k_positions, [0.1, 0.4], dtype=dtype), batch=2, tolerance=tolerance)


def test_many_queries_are_divided_among_threads_and_every_distance_is_found():
    positions = torch.arange(300)[None]
    agree(make(positions, positions, [i / 20 for i in range(-3, 25)], c=0.05), batch=2, tolerance=1e-11)


def test_nothing_is_apart_where_c_is_zero():
    bias = make(torch.tensor([[5]]), torch.arange(6)[None], [0.2, -0.3], c=0.0)
    with torch.no_grad():
        assert torch.equal(bias.written(), bias.offsets[1].expand(6, -1).T[None, :, None])


def test_no_queries_and_no_keys():
    for queries, keys in ((0, 4), (3, 0), (0, 0)):
        bias = make(torch.arange(queries)[None], torch.arange(keys)[None], [0.2])
        assert bias.written().shape == (1, HEADS, queries, keys)


def test_places_between_tokens_take_the_definition():
    bias = make(torch.tensor([[1.5, 2.5]]), torch.tensor([[0.0, 1.0, 2.0]]), [0.1])
    z = torch.log1p(0.3 * (bias.q_positions[0, :, None] - bias.k_positions[0]).abs()) * bias.rate[0, :, None]
    expected = torch.where(
        (z > bias.kinks[0])[None],
        *(bias.slopes[n][:, None, None] * z + bias.offsets[n][:, None, None] for n in (1, 0)),
    )
    torch.testing.assert_close(bias.written()[0], expected)


def test_scaled_and_some_of_the_heads():
    bias = make(torch.arange(4)[None], torch.arange(4)[None], [0.1, 0.3])
    torch.testing.assert_close(bias.scaled(0.5).written(), 0.5 * bias.written())
    assert torch.equal(bias.of_heads(slice(1, 3)).written(), bias.written()[:, 1:3])


@pytest.mark.parametrize("pattern", [causal(), full(), window(5)], ids=repr)
def test_attention_by_tiles_equals_the_definition(pattern):
    bias = make(torch.arange(20, 60)[None], torch.arange(60)[None], [0.05, 0.2, 0.31, 0.5])
    q, k, v = (torch.randn(2, n, HEADS, 4, dtype=torch.float64, requires_grad=True) for n in (40, 60, 60))
    found = []
    for backend in ("reference", "tiled"):
        with use("reference" if backend == "reference" else "auto"):
            o = attention(q, k, v, pattern=pattern, bias=bias, backend=backend)
            found.append([o, *torch.autograd.grad(o.square().sum(), (q, k, v, *bias.inputs))])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-11)


def test_gradients_equal_finite_differences():
    bias = make(torch.arange(3, 7)[None], torch.arange(7)[None], [0.11, 0.33])
    assert torch.autograd.gradcheck(lambda *given: bias.over(given).written(), bias.inputs)
