from __future__ import annotations

import itertools

import pytest
import torch

from lengthwise.caches.selective import SelectiveCache
from lengthwise.contract import Layout
from lengthwise.ops.attention import attention
from lengthwise.ops.patterns import blocks, causal, first, fixed, keys_at, window

PATTERNS = [
    causal() & blocks(4, previous=1),
    causal() & (blocks(4) | fixed(4, 2)),
    causal() & (window(3) | fixed(5, 1) | first(2)),
    causal() & fixed(3, 1),
    causal() & (blocks(3) | keys_at(1, 8)),
]
LAYOUTS = [None, Layout.packed([[7, 1, 12], [3, 9, 5, 3]]), Layout.padded([20, 13])]


def rows(length=20):
    torch.manual_seed(0)
    return [torch.randn(2, length, 2, 4, dtype=torch.float64) for _ in range(3)]


def run(pattern, cuts, layout=None):
    """The outputs of all tokens and the cache after them."""
    q, k, v = rows()
    cache, outputs = SelectiveCache.empty(k, v), []
    for begin, end in itertools.pairwise(cuts):
        part = None if layout is None else layout.slice(begin, end)
        context, cache = cache.extend(k[:, begin:end], v[:, begin:end], pattern, part)
        numbers = context.documents
        outputs.append(
            attention(
                q[:, begin:end],
                context.keys,
                context.values,
                pattern=pattern,
                positions=None if context.consecutive else context.positions,
                query_documents=None if numbers is None else numbers[:, numbers.shape[1] - (end - begin) :],
                key_documents=numbers,
            )
        )
    return torch.cat(outputs, 1), cache


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["one document", "packed", "padded"])
@pytest.mark.parametrize("gradients", [True, False])
def test_cuts_change_nothing(pattern, layout, gradients):
    with torch.set_grad_enabled(gradients):
        y, whole = run(pattern, [0, 20], layout)
        for cuts in ([0, 1, 2, 3, 20], list(range(21)), [0, 0, 13, 14, 20, 20]):
            o, cut = run(pattern, cuts, layout)
            torch.testing.assert_close(o, y)
            for name in ("keys", "values", "far_keys", "far_values", "far_places"):
                assert torch.equal(getattr(cut, name), getattr(whole, name))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_it_keeps_what_the_pattern_says(pattern):
    for length in range(21):
        _, cache = run(pattern, [0, length])
        assert (cache.keys.shape[1], cache.far_keys.shape[1]) == pattern.kept(length)


def test_a_block_is_dropped_whole():
    pattern = causal() & blocks(4, previous=1)
    assert [run(pattern, [0, n])[1].keys.shape[1] for n in range(13)] == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 4]
    _, cache = run(causal() & (blocks(4) | fixed(4, 2)), [0, 11])
    assert cache.far_places.tolist() == [[2, 3, 6, 7]] * 2


def test_a_row_forgets_its_document_when_another_begins():
    _, cache = run(causal() & (blocks(4) | fixed(4, 2)), [0, 20], LAYOUTS[1])
    assert cache.far_places.tolist() == [[2, 3, 6, 7], [-1, -1, -1, -1]]
    assert cache.position.tolist() == [12, 3]


def test_a_token_at_a_time_copies_nothing_of_the_open_block():
    pattern = causal() & blocks(64, previous=1)
    k = torch.randn(1, 1, 2, 4)
    with torch.no_grad():
        _, cache = SelectiveCache.empty(k, k).extend(k.expand(-1, 70, -1, -1), k.expand(-1, 70, -1, -1), pattern)
        _, cache = cache.extend(k, k, pattern)
        begin = cache.keys.data_ptr()
        for _ in range(50):
            _, cache = cache.extend(k, k, pattern)
            assert cache.keys.data_ptr() == begin
