from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.ops import patterns
from lengthwise.ops.patterns import Visibility, aligned, causal, documents, first, full, run_starts, window

sizes = st.integers(1, 9)
atoms = st.one_of(
    st.just(full()),
    st.just(causal()),
    sizes.map(window),
    st.tuples(st.one_of(st.none(), sizes), st.one_of(st.none(), sizes)).map(lambda sides: window(*sides)),
    sizes.map(first),
)
combined = st.recursive(
    atoms, lambda p: st.one_of(st.tuples(p, p).map(lambda t: t[0] & t[1]), st.tuples(p, p).map(lambda t: t[0] | t[1]))
)


def seen(pattern, queries=12, keys=15):
    return aligned(pattern, queries, keys).mask()[0]


@given(combined, combined)
def test_combining_patterns_combines_their_masks(a, b):
    assert torch.equal(seen(a & b), seen(a) & seen(b))
    assert torch.equal(seen(a | b), seen(a) | seen(b))


@given(combined)
def test_the_representation_builds_the_same_pattern(pattern):
    names = {name: getattr(patterns, name) for name in patterns.PATTERNS}
    assert eval(repr(pattern), names) == pattern


@given(combined, st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_tiles_tell_the_truth(pattern, height, width, seed, packed):
    queries, keys = 9, 13
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 2, (2, keys), generator=generator).cumsum(1) if packed else None
    layout = aligned(pattern, queries, keys, None if numbers is None else numbers[:, -queries:], numbers)
    for i, line in enumerate(layout.tiles(height, width)):
        for j, verdict in enumerate(line):
            tile = layout.mask(slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width))
            assert verdict is not False or not tile.any()
            assert verdict is not True or tile.all()


def test_a_plain_band_has_no_needless_tiles():
    line = aligned(causal() & window(4), 16, 16).tiles(4, 4)
    assert line == [[None if j in (i, i - 1) else False for j in range(4)] for i in range(4)]
    assert aligned(causal(), 16, 16).tiles(4, 4)[3] == [True, True, True, None]


def test_queries_are_the_last_of_the_keys():
    assert seen(causal(), 2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]
    assert seen(causal(), 3, 2).tolist() == [[False, False], [True, False], [True, True]]


def test_first_keys_are_those_of_the_document():
    numbers = torch.tensor([[3, 3, 3, 7, 7, 7]])
    mask = aligned(causal() & (window(1) | first(1)), 6, 6, numbers, numbers).mask()[0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 0, 1],
    ]


def test_normal_form():
    assert repr(causal() & (window(512) | first(4))) == "window(512) | causal() & first(4)"
    assert (causal() & (window(512) | first(4))).band == (511, 0, 4)
    assert causal() | window(3) == causal()
    assert (first(2) | window(3) | window(5, 9)).band == (5, 9, 2)
    assert (causal() & first(2)).band is None
    assert causal().causal
    assert not window(2, 1).causal
    assert run_starts(torch.tensor([[5, 5, 6, 5]])).tolist() == [[0, 0, 2, 3]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: window(0), "window must be at least 1, got 0"),
        (lambda: first(0), "first must be at least 1, got 0"),
        (lambda: window(-1, 2), "left side of a window must be at least 0, got -1"),
        (lambda: window(1, 2, 3), "got 3 values"),
        (lambda: aligned(documents(), 2, 2).mask(), "needs the document numbers"),
        (lambda: aligned(causal(), 2, 2, torch.zeros(1, 2, dtype=torch.long)), "or of neither"),
    ],
)
def test_what_makes_no_sense_is_told(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_a_visibility_can_differ_by_row():
    index = torch.tensor([[0, 1, 2], [5, 0, 1]])
    mask = Visibility(causal(), index, index).mask()
    assert mask[0].tolist() == torch.ones(3, 3).tril().bool().tolist()
    assert mask[1].int().tolist() == [[1, 1, 1], [0, 1, 0], [0, 1, 1]]
