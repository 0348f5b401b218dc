"""Cutting into chunks and back."""

import pytest
import torch

from lengthwise.ops.chunks import put, spans, split


@pytest.mark.parametrize("length", [1, 3, 4, 5, 11, 12])
def test_put_undoes_split(length):
    x = torch.randn(2, length, 3, 5)
    back = torch.empty_like(x)
    for begin, end in ((0, min(8, length)), (8, length)):
        if begin < end:
            chunks = split(x, begin, end, 4, torch.float64)
            assert chunks.shape[1:] == (6, 4, 5)
            assert chunks.is_contiguous()
            put(back, begin, chunks.float())
    assert torch.equal(back, x)


def test_the_last_chunk_is_filled_up_with_zeros():
    chunks = split(torch.ones(1, 5, 1, 2), 0, 5, 4, torch.float32)
    assert chunks[1, 0].tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize(("length", "chunk", "rows"), [(0, 8, 1), (1, 8, 4), (10_000, 64, 4), (10_000, 64, 1000)])
def test_spans_are_whole_chunks_that_cover_the_length_once(length, chunk, rows):
    found = spans(length, chunk, rows)
    assert [t for begin, end in found for t in range(begin, end)] == list(range(length))
    assert all(begin % chunk == 0 for begin, _ in found)
