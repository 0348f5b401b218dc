from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.reducers.blocks import Blocks, Order, taken


def rows(length, seed=0, dim=3):
    """Tokens of which some aren't there and some are marked."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, length, dim, generator=generator, dtype=torch.float64)
    there = torch.rand(2, length, generator=generator) < 0.8
    return x, there, (torch.rand(2, length, generator=generator) < 0.2) & there


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 30),
    places=st.integers(1, 8),
    block=st.integers(1, 6),
    eps=st.sampled_from([0.0, 1e-4]),
    seed=st.integers(0, 99),
)
def test_restored_at_once_is_what_was_given(length, places, block, eps, seed):
    """Whatever the mean's denominator, since the differences are from the same mean."""
    x, there, marked = rows(length, seed)
    order = Order.of(there, marked, places, block)
    assert order.index.shape[1] == places + order.blocks * block
    assert order.there.sum() == there.sum()
    restored = Blocks.of(x, order, eps).restored(torch.full_like(x, 7.0))
    torch.testing.assert_close(restored, torch.where(there[..., None], x, 7.0), atol=1e-12, rtol=1e-12)


def test_marked_tokens_come_first_and_absent_ones_last():
    there = torch.tensor([[False, True, True, True, True, False, True]])
    marked = torch.tensor([[False, False, False, True, False, False, True]])
    order = Order.of(there, marked, places=3, block=2)
    assert order.index[order.there].tolist() == [3, 6, 1, 2, 4]
    assert order.marked.tolist() == [[True, True, False]]
    assert order.blocks == 2


def test_a_mean_is_of_the_tokens_that_are_there():
    x, there, marked = rows(20)
    order = Order.of(there, marked, 4, 5)
    blocks = Blocks.of(x, order)
    for r in range(2):
        tokens = x[r, order.index[r]][order.there[r]][4:]
        for t, own in enumerate(tokens.split(5)):
            torch.testing.assert_close(blocks.means[r, t], own.sum(0) / (len(own) + 1e-4), atol=1e-12, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 4), fine=st.integers(0, 4), seed=st.integers(0, 99))
def test_many_steps_move_fine_tokens_each_and_coarse_ones_with_their_mean(steps, fine, seed):
    """Against tokens that are all kept; ε = 0, since a mean over n + ε moves by less than its tokens."""
    x, there, marked = rows(22, seed)
    there[:] = True
    order = Order.of(there, marked & (torch.arange(22) < 9), 6, 4)
    blocks, kept = Blocks.of(x, order, eps=0.0), order.take(x)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        split = torch.rand(2, 4, generator=generator).argsort(1)
        chosen, others = split[:, :fine], split[:, fine:]
        tokens = kept[:, 6:].unflatten(1, (4, 4))
        torch.testing.assert_close(blocks.fine(chosen), taken(tokens, chosen), atol=1e-12, rtol=1e-12)
        new = torch.randn(2, fine, 4, 3, generator=generator, dtype=torch.float64)
        moves = torch.randn(2, 4 - fine, 3, generator=generator, dtype=torch.float64)
        important = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
        means = taken(blocks.means, others) + moves
        blocks = blocks.after(chosen, new, others, means, important)
        moved = torch.cat([new, taken(tokens, others) + moves[:, :, None]], 1)
        kept = torch.cat([important, taken(moved, split.argsort(1)).flatten(1, 2)], 1)
    expected = order.put_back(kept, x)
    torch.testing.assert_close(blocks.restored(x), expected, atol=1e-10, rtol=1e-10)


def test_a_step_copies_no_difference_of_a_coarse_block():
    x, there, marked = rows(70)
    order = Order.of(torch.ones_like(there), marked & (torch.arange(70) < 9), 6, 4)
    first = Blocks.of(x, order)
    split = torch.arange(16).expand(2, -1)
    new = torch.zeros(2, 2, 4, 3, dtype=x.dtype)
    after = first.after(split[:, :2], new, split[:, 2:], first.means[:, 2:], first.important)
    assert after.banks[0] is first.banks[0]
    assert after.banks[1].shape == (2, 2, 4, 3)
