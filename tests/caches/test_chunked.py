import itertools

import pytest
import torch

from lengthwise.caches import ChunkedCache
from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.ops.chunk_attention import chunk_attention_reference

CHUNK = 4
PACKED = Layout.packed([[7, 1, 12], [3, 9, 5]])


def heads(length=20):
    torch.manual_seed(0)
    return [torch.randn(2, length, 2, 3, dtype=torch.float64) for _ in range(3)]


def run(cuts, layout=None):
    q, k, v = heads()
    cache = ChunkedCache.empty(CHUNK, k, v)
    outputs = []
    for begin, end in itertools.pairwise(cuts):
        part = None if layout is None else layout.slice(begin, end)
        o, cache = cache.attend(*(x[:, begin:end] for x in (q, k, v)), part)
        outputs.append(o)
    return torch.cat(outputs, 1), cache


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("layout", [None, PACKED, Layout.padded([20, 13]), Layout.padded([11, 20], "right")])
def test_cuts_change_nothing(gradients, layout):
    with torch.set_grad_enabled(gradients):
        whole, after = run([0, 20], layout)
        real = torch.ones(2, 20, dtype=torch.bool) if layout is None else ~layout.padding
        for cuts in ([0, 1, 2, 3, 20], list(range(21)), [0, 0, 13, 14, 20, 20]):
            cut, cache = run(cuts, layout)
            torch.testing.assert_close(cut[real], whole[real], rtol=0, atol=1e-12)
            assert torch.equal(cache.keys, after.keys)
            assert (cache.open is None) == (after.open is None)


def test_documents_have_chunks_of_their_own():
    o, cache = run([0, 20], PACKED)
    q, k, v = heads()
    begin = 0
    for length in (7, 1, 12):
        part = slice(begin, begin + length)
        alone = chunk_attention_reference(*(x[:1, part] for x in (q, k, v)), CHUNK)
        torch.testing.assert_close(o[:1, part], alone, rtol=0, atol=1e-12)
        begin += length
    assert cache.keys.shape[1] == 0  # row 0 has just filled a chunk, row 1 ends in padding


def test_keeps_the_open_chunk_alone():
    for length in range(20):
        _, cache = run([0, length])
        assert cache.keys.shape[1] == length % CHUNK
        assert cache.open is None


def test_places_are_counted_from_the_beginning_of_a_chunk():
    _, cache = run([0, 6])
    assert cache.places(5).tolist() == [[2, 3, 0, 1, 2]]
    assert cache.places(5, PACKED.slice(6, 11)).tolist() == [[2, 0, 0, 1, 2], [2, 3, 0, 1, 2]]


def test_rows_of_different_phase_keep_what_the_longest_needs():
    _, cache = run([0, 9], PACKED)
    assert cache.open.tolist() == [1, 2]
    assert cache.keys.shape[1] == 2
    assert cache.select(torch.tensor([1, 0])).open.tolist() == [2, 1]


def test_a_cache_continued_twice_is_not_changed():
    with torch.no_grad():
        q, k, v = heads()
        _, cache = run([0, 5, 6])
        before = cache.keys.clone()
        first, _ = cache.attend(q[:, :1], k[:, :1], v[:, :1])
        cache.attend(q[:, 1:2], k[:, 1:2], v[:, 1:2])
        again, _ = cache.attend(q[:, :1], k[:, :1], v[:, :1])
    assert torch.equal(cache.keys, before)
    assert torch.equal(first, again)


def test_a_chunk_holds_a_token():
    with pytest.raises(InputError, match="at least 1 token, got 0"):
        ChunkedCache.empty(0, *heads()[1:])
