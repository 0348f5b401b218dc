from __future__ import annotations

import torch

from lengthwise.benches import attention as benches
from lengthwise.caches import FullCache


def test_rows_of_small_sizes():
    rows = [benches.dense(64, 1e11), benches.windowed(256, 16, 1e11)]
    for row in rows:
        assert row.seconds > 0
        assert all(ratio > 0 for ratio in row.ratios.values())
        assert row.limit > 0


def test_products_are_those_of_the_kernel():
    """Forward 2, backward 5 products of 2 · pairs · head_dim operations for each head."""
    assert benches.products(10) == 7 * 2 * 10 * 64 * 8


def test_a_decoder_goes_on_from_its_own_cache():
    k = torch.randn(1, 3, 1, 4)
    _, cache = FullCache.empty(k, k).extend(k, k)
    step = benches.decoder(torch.randn(1, 1, 2, 4), cache)
    with torch.no_grad():
        first, second = step(), step()
    assert not torch.equal(first, second)
