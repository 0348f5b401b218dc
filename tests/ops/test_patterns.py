from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.pattern_strategies import combined

from lengthwise.errors import InputError
from lengthwise.ops import patterns
from lengthwise.ops.patterns import (
    blocks,
    causal,
    dilated,
    documents,
    first,
    fixed,
    full,
    global_tokens,
    keys_at,
    per_head,
    queries_at,
    strided,
    window,
)
from lengthwise.ops.visibility import Visibility, aligned, run_starts


def seen(pattern, queries=12, keys=15):
    return aligned(pattern, queries, keys).mask()[0]


@settings(deadline=None)
@given(combined, combined)
def test_combining_patterns_combines_their_masks(a, b):
    assert torch.equal(seen(a & b), seen(a) & seen(b))
    assert torch.equal(seen(a | b), seen(a) | seen(b))


@settings(deadline=None)
@given(combined)
def test_the_representation_builds_the_same_pattern(pattern):
    names = {name: getattr(patterns, name) for name in patterns.PATTERNS}
    assert eval(repr(pattern), names) == pattern


@settings(deadline=None)
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


def rows(pattern, length):
    """What each query sees, written out."""
    place = torch.arange(length)
    return [mask.nonzero().flatten().tolist() for mask in pattern.mask(place, place)]


def test_each_pattern_is_its_definition():
    assert rows(causal() & strided(3), 6) == [[0], [1], [2], [0, 3], [1, 4], [2, 5]]
    assert rows(dilated(2, 2), 5) == [[0], [1], [0, 2], [1, 3], [2, 4]]
    assert rows(dilated(2, 1, 1), 5) == [[0, 2], [1, 3], [0, 2, 4], [1, 3], [2, 4]]
    assert rows(blocks(2), 5) == [[0, 1], [0, 1], [2, 3], [2, 3], [4]]
    assert rows(causal() & blocks(2, previous=1), 5) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [2, 3, 4]]
    assert rows(blocks(2, 0, following=1), 5) == [[0, 1, 2, 3]] * 2 + [[2, 3, 4]] * 2 + [[4]]
    assert rows(causal() & (blocks(3) | fixed(3, 1)), 6) == [[0], [0, 1], [0, 1, 2], [2, 3], [2, 3, 4], [2, 3, 4, 5]]
    assert rows(fixed(4, 1, skip=2), 4) == [[1]] * 4
    assert rows(global_tokens(1, 9), 3) == [[1], [0, 1, 2], [1]]
    assert rows(keys_at(1) & keys_at(2), 3) == [[], [], []]


@pytest.mark.parametrize("length", [1, 9, 16, 31])
def test_any_place_is_two_hops_away(length):
    """Child et al. 2019: each of the two pairs of patterns reaches every earlier place in two steps."""
    place = torch.arange(length)
    for near, far in (
        (causal() & window(4), causal() & strided(4)),
        (causal() & blocks(4), causal() & (fixed(4, 1) | window(1))),
    ):
        hops = near.mask(place, place).float() @ far.mask(place, place).float()
        back = far.mask(place, place).float() @ near.mask(place, place).float()
        assert torch.equal((hops + back) > 0, torch.ones(length, length).tril().bool())


@settings(deadline=None, max_examples=50)
@given(combined, st.integers(0, 20), st.integers(1, 3))
def test_entries_and_receptive_field_are_those_of_the_mask(pattern, length, layers):
    place = torch.arange(40)
    mask = pattern.mask(place, place)
    assert pattern.entries(length) == int(mask[:length, :length].sum())
    reached = mask | torch.eye(40, dtype=torch.bool)
    for _ in range(layers - 1):
        reached = (reached.float() @ mask.float() > 0) | reached
    field = pattern.receptive_field(layers)
    assert field is None or int(reached.sum(1).max()) <= field


def test_receptive_fields():
    assert (causal() & window(5)).receptive_field(3) == 13
    assert window(2, 1).receptive_field(2) == 7
    assert dilated(3, 4).receptive_field() == 10
    assert (causal() & blocks(16, 1)).receptive_field(6) == 7 * 16
    assert (causal() & blocks(16) & window(4)).receptive_field() == 4
    assert causal().receptive_field() is None
    assert (causal() & strided(4)).receptive_field() is None


@settings(deadline=None, max_examples=50)
@given(combined, st.integers(0, 30))
def test_what_later_queries_see_is_kept(pattern, place):
    pattern = pattern & causal()
    index = torch.arange(60)
    later = pattern.mask(index, index)[place:, :place].any(0)
    keys = index[:place]
    kept = (keys >= pattern.near(place)) | pattern.lasting(keys)
    assert not (later & ~kept).any()
    assert sum(pattern.kept(place)) == int(kept.sum())


def test_heads_in_groups():
    pattern = causal() & per_head(window(2), strided(3)) & per_head(full(), full(), first(4), full())
    assert pattern.heads == (
        window(2),
        window(2),
        causal() & strided(3) & first(4),
        causal() & strided(3),
    )
    assert pattern.causal
    assert eval(repr(pattern), patterns.PATTERNS) == pattern
    assert per_head(window(2), window(2)) == window(2)
    assert (per_head(window(1), window(3)) | first(1)).heads == (window(1) | first(1), window(3) | first(1))
    assert per_head(window(1), causal()).entries(4) == 7
    with pytest.raises(InputError, match="mask of each"):
        pattern.mask(torch.arange(3), torch.arange(3))


def test_normal_form():
    assert repr(causal() & (window(512) | first(4))) == "window(512) | causal() & first(4)"
    assert (causal() & (window(512) | first(4))).band == (511, 0, 4)
    assert causal() | window(3) == causal()
    assert (first(2) | window(3) | window(5, 9)).band == (5, 9, 2)
    assert (causal() & first(2)).band is None
    assert (causal() & blocks(2)).band is None
    assert strided(4) & strided(6) == strided(12)
    assert strided(1) == full()
    assert fixed(4, 4) == full()
    assert fixed(4, 2) & fixed(4, 2, skip=1) == fixed(4, 1, skip=1)
    assert global_tokens() | window(3) == window(3)
    assert queries_at(2, 1, 2) == queries_at(1, 2)
    assert causal().causal
    assert not window(2, 1).causal
    assert run_starts(torch.tensor([[5, 5, 6, 5]])).tolist() == [[0, 0, 2, 3]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: window(0), "window must be at least 1, got 0"),
        (lambda: first(0), "first must be at least 1, got 0"),
        (lambda: strided(0), "step must be at least 1, got 0"),
        (lambda: dilated(2, 0), "window must be at least 1, got 0"),
        (lambda: dilated(2), "got 1 values"),
        (lambda: blocks(0), "size must be at least 1"),
        (lambda: blocks(2, -1), "previous must be at least 0"),
        (lambda: fixed(4, 0), "count must be at least 1"),
        (lambda: fixed(4, 3, skip=2), "a block of 4 doesn't have 3 places before its last 2"),
        (lambda: global_tokens(-1), "counted from 0 .* got -1"),
        (lambda: per_head(), "got none"),
        (lambda: per_head(per_head(causal(), full()), full()), "patterns that all heads share"),
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
