from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.caches.routed import RoutedCache
from lengthwise.contract import Layout, state_nbytes

HEADS, CLUSTERS = 2, 3


def expected(q, k, v, clusters, documents, members):
    """Each token over the last members of its cluster and document, in a loop."""
    o = torch.zeros_like(v)
    for b, i, h in torch.cartesian_prod(*map(torch.arange, clusters.shape)).tolist():
        own = (clusters[b, : i + 1, h] == clusters[b, i, h]) & (documents[b, : i + 1] == documents[b, i])
        own = own.nonzero().flatten()[-members:]
        o[b, i, h] = (k[b, own, h] @ q[b, i, h] / 2).softmax(0) @ v[b, own, h]
    return o


@settings(max_examples=40, deadline=None)
@given(
    members=st.integers(1, 6),
    cuts=st.sets(st.integers(1, 23), max_size=6),
    begins=st.tuples(*[st.sets(st.integers(1, 23), max_size=3)] * 2),
    packed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_pieces_of_any_documents_are_as_a_loop(members, cuts, begins, packed, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 24, HEADS, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    clusters = torch.randint(CLUSTERS, (2, 24, HEADS), generator=generator)
    documents = torch.zeros(2, 24, dtype=torch.long)
    if packed:
        for r, starts in enumerate(begins):
            for start in starts:
                documents[r, start:] += 1
    layout = Layout.numbered(documents) if packed else None
    cache, outputs = RoutedCache.empty(CLUSTERS, members, k, v), []
    edges = [0, *sorted(cuts), 24]
    with torch.no_grad():
        for begin, end in pairwise(edges):
            piece = slice(begin, end)
            part = None if layout is None else layout.slice(begin, end)
            o, cache = cache.attend(q[:, piece], k[:, piece], v[:, piece], clusters[:, piece], part)
            outputs.append(o)
    wanted = expected(q, k, v, clusters, documents, members)
    torch.testing.assert_close(torch.cat(outputs, 1), wanted, atol=1e-10, rtol=1e-10)
    tokens = CLUSTERS * (members - 1) + 24 % members
    assert state_nbytes(cache) == 2 * HEADS * (2 * tokens * 4 * 8 + 8 * (CLUSTERS + 24 % members))


def test_two_branches_of_a_cache_share_no_memory():
    """Going on twice from one cache, in place behind it where there is room, gives each its own tokens."""
    torch.manual_seed(0)
    k = torch.randn(1, 40, HEADS, 4, dtype=torch.float64)
    clusters = torch.randint(CLUSTERS, (1, 40, HEADS))
    with torch.no_grad():
        _, cache = RoutedCache.empty(CLUSTERS, 16, k, k).attend(k[:, :8], k[:, :8], k[:, :8], clusters[:, :8])
        one, two = k[:, 8:9], k[:, 9:10]
        _, first = cache.attend(one, one, one, clusters[:, 8:9])
        kept = first.recent_keys.clone()
        cache.attend(two, two, two, clusters[:, 9:10])
    assert torch.equal(first.recent_keys, kept)
