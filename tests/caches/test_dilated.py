import itertools

import pytest
import torch

from lengthwise.caches.dilated import DilatedCache
from lengthwise.caches.documents import by_document
from lengthwise.contract import Layout, state_tensors
from lengthwise.ops.dilated_attention import branches_of, dilated_attention_reference

BRANCHES = branches_of((3, 6, 12), (1, 2, 5))
HEADS = 3
PACKED = Layout.packed([[7, 1, 12, 17], [3, 19, 5]])


def heads(length=37):
    torch.manual_seed(0)
    return [torch.randn(2, length, HEADS, 2, dtype=torch.float64) for _ in range(3)]


def run(cuts, layout=None):
    q, k, v = heads()
    cache = DilatedCache.empty(BRANCHES, k, v)
    outputs = []
    for begin, end in itertools.pairwise(cuts):
        part = None if layout is None else layout.slice(begin, end)
        o, cache = by_document(DilatedCache.attend, cache, [x[:, begin:end] for x in (q, k, v)], part)
        outputs.append(o)
    return torch.cat(outputs, 1), cache


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("layout", [None, PACKED, Layout.padded([37, 20]), Layout.padded([11, 37], "right")])
def test_cuts_change_nothing(gradients, layout):
    with torch.set_grad_enabled(gradients):
        whole, after = run([0, 37], layout)
        real = torch.ones(2, 37, dtype=torch.bool) if layout is None else ~layout.padding
        for cuts in ([0, 1, 2, 3, 37], list(range(38)), [0, 0, 13, 14, 20, 37, 37], [*range(0, 38, 2), 37]):
            cut, cache = run(cuts, layout)
            torch.testing.assert_close(cut[real], whole[real], rtol=0, atol=1e-12)
            for a, b in zip(state_tensors(cache), state_tensors(after), strict=True):
                assert torch.equal(a, b)


def test_documents_have_segments_of_their_own():
    o, cache = run([0, 37], PACKED)
    q, k, v = heads()
    begin = 0
    for length in (7, 1, 12, 17):
        part = slice(begin, begin + length)
        alone = dilated_attention_reference(*(x[:1, part] for x in (q, k, v)), BRANCHES)
        torch.testing.assert_close(o[:1, part], alone, rtol=0, atol=1e-12)
        begin += length
    assert cache.position.tolist() == [17, 0]  # row 1 ends in padding


def test_keeps_what_was_sampled_of_open_segments():
    _, k, v = heads()
    for length in range(37):
        _, cache = run([0, length])
        for branch, kept in zip(BRANCHES, cache.segments, strict=True):
            begin, each = length // branch.segment * branch.segment, -(-HEADS // branch.dilation)
            for x, rows, begun in ((k, kept.keys, kept.begun_keys), (v, kept.values, kept.begun_values)):
                for head in range(HEADS):
                    found = rows[:, :, head]
                    if head < begun.shape[1]:
                        found = torch.cat([found, begun[:, None, head]], 1)
                    own = x[:, begin:length, head][:, head // each :: branch.dilation]
                    assert torch.equal(found, own)


def test_a_decoded_token_copies_no_past():
    branches = branches_of((64, 1024), (1, 4))
    with torch.no_grad():
        q, k, v = (torch.randn(1, 600, 4, 2) for _ in range(3))
        _, cache = DilatedCache.empty(branches, k, v).attend(q[:, :520], k[:, :520], v[:, :520])
        places = set()
        for t in range(520, 570):
            _, cache = cache.attend(*(x[:, t : t + 1] for x in (q, k, v)))
            places.add(cache.segments[1].keys.untyped_storage().data_ptr())
    assert cache.segments[1].keys.shape[1] == 570 // 4
    assert len(places) <= 2  # the one it came with, and one with room


def test_a_cache_continued_twice_is_not_changed():
    with torch.no_grad():
        q, k, v = heads()
        _, cache = run([0, 16, 17])
        before = [t.clone() for t in state_tensors(cache)]
        first, _ = cache.attend(q[:, :5], k[:, :5], v[:, :5])
        cache.attend(q[:, 1:2], k[:, 1:2], v[:, 1:2])
        again, _ = cache.attend(q[:, :5], k[:, :5], v[:, :5])
    assert torch.equal(first, again)
    for old, new in zip(before, state_tensors(cache), strict=True):
        assert torch.equal(old, new)
