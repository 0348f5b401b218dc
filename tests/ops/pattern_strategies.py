"""Patterns of every kind, for properties that hold for all of them."""

from __future__ import annotations

from hypothesis import strategies as st

from lengthwise.ops.patterns import (
    blocks,
    causal,
    dilated,
    first,
    fixed,
    full,
    global_tokens,
    keys_at,
    strided,
    window,
)

sizes = st.integers(1, 9)
places = st.lists(st.integers(0, 17), max_size=3)
atoms = st.one_of(
    st.just(full()),
    st.just(causal()),
    sizes.map(window),
    st.tuples(st.one_of(st.none(), sizes), st.one_of(st.none(), sizes)).map(lambda sides: window(*sides)),
    sizes.map(first),
    st.integers(1, 4).map(strided),
    st.tuples(st.integers(1, 3), sizes).map(lambda t: dilated(*t)),
    st.tuples(st.integers(1, 5), st.integers(0, 2), st.integers(0, 1)).map(lambda t: blocks(*t)),
    st.tuples(st.integers(1, 2), st.integers(0, 2)).map(lambda t: fixed(4, *t)),
    st.tuples(st.integers(1, 3)).map(lambda t: fixed(3, *t)),
    places.map(lambda chosen: global_tokens(*chosen)),
    places.map(lambda chosen: keys_at(*chosen)),
)
combined = st.recursive(
    atoms,
    lambda p: st.one_of(st.tuples(p, p).map(lambda t: t[0] & t[1]), st.tuples(p, p).map(lambda t: t[0] | t[1])),
    max_leaves=5,
)
