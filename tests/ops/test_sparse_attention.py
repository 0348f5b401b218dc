from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.pattern_strategies import combined

from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.ops import tiles
from lengthwise.ops.attention import attention_reference
from lengthwise.ops.patterns import causal, first, fixed, global_tokens, keys_at, per_head, strided, window
from lengthwise.ops.sparse_attention import sparse_attention
from lengthwise.ops.tiles import frames, frames_of
from lengthwise.ops.visibility import aligned


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "SIDE", 8)
    monkeypatch.setattr(tiles, "BLOCK", 3)
    monkeypatch.setattr(tiles, "KEPT", 500)
    frames_of.cache_clear()
    yield
    frames_of.cache_clear()


def inputs(queries, keys, batch=2, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = [(queries, 4, 6), (keys, 2, 6), (keys, 2, 6)]
    return [torch.randn(batch, *shape, dtype=dtype, requires_grad=True) for shape in shapes]


def agree(tensors, pattern, planned, **packed):
    o, expected = sparse_attention(*tensors, planned), attention_reference(*tensors, pattern=pattern, **packed)
    torch.testing.assert_close(o, expected)
    grad = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)
    for got, wanted in zip(*(torch.autograd.grad(y, tensors, grad) for y in (o, expected)), strict=True):
        torch.testing.assert_close(got, wanted)


@settings(deadline=None, max_examples=60)
@given(combined, st.integers(0, 40), st.integers(0, 9), st.integers(1, 2))
def test_any_pattern_equals_the_definition(pattern, queries, past, batch):
    tensors = inputs(queries, queries + past, batch)
    agree(tensors, pattern, frames_of(pattern, queries, queries + past, torch.device("cpu")))


@settings(deadline=None, max_examples=40)
@given(combined, st.integers(1, 30), st.integers(0, 5))
def test_any_pattern_over_packed_documents(pattern, length, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 2, (2, length), generator=generator).cumsum(1)
    packed = {"query_documents": numbers, "key_documents": numbers}
    agree(inputs(length, length), pattern, frames(aligned(pattern, length, length, **packed)), **packed)


@settings(deadline=None, max_examples=60)
@given(combined, st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.integers(1, 9))
def test_tiles_and_their_blocks_hold_all_that_is_seen(pattern, queries, past, height, width):
    visibility = aligned(pattern, queries, queries + past)
    cut, held = tiles.Tiles(visibility, height, width), torch.zeros(1, queries, queries + past, dtype=torch.bool)
    for rows, line in cut.rows:
        for columns, hides in line:
            seen = cut.seen(rows, columns, hides)
            for top, bottom, left, right in seen.blocks[0].tolist():
                block = held[:, rows, columns][:, top:bottom, left:right]
                assert not block.any()
                block |= True if seen.mask is None else seen.mask[:, top:bottom, left:right]
    assert torch.equal(held, visibility.mask())


def test_a_window_is_one_mask():
    (frame,) = frames_of(window(8), 64, 64, torch.device("cpu"))
    assert frame.tiles.count == 15
    assert frame.tiles.pairs < 15 * 8 * 8
    assert len(frame.tiles.distinct) == 2  # before the queries, and beside them
    whole = frames_of(causal(), 64, 64, torch.device("cpu"))
    assert whole[0].tiles.count == 8 * 9 // 2
    assert frames_of(keys_at(), 64, 64, torch.device("cpu")) == ()


@pytest.mark.parametrize("room", [100, 10_000])
def test_no_more_masks_are_kept_than_fit(monkeypatch, room):
    monkeypatch.setattr(tiles, "KEPT", room)
    frame = frames_of(window(9) & keys_at(11, 13, 26, 33, 37, 52), 64, 64, torch.device("cpu"))[0]
    masks = [frame.tiles.seen(rows, *tile).mask for rows, line in frame.tiles.rows for tile in line]
    different = {mask.numpy().tobytes() for mask in masks}
    kept = frame.tiles.distinct.values()
    assert sum(seen.mask.numel() for seen in kept) <= room
    assert (len(kept) == len(different)) == (room == 10_000)


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        (
            causal() & strided(16),
            64 * 6,
        ),  # in order of their remainder, squares of 4 by 4; blocks of 3 queries cut them
        (causal() & fixed(16, 2), 64 * 8),  # the 8 chosen keys alone
        (keys_at(3, 40), 64 * 2),
        (global_tokens(5), 2 * 64),
    ],
    ids=repr,
)
def test_what_is_dense_in_another_order_is_visited_there(pattern, most):
    assert sum(f.tiles.pairs for f in frames_of(pattern, 64, 64, torch.device("cpu"))) <= most


def test_groups_of_heads_are_planned_apart():
    with pytest.raises(InputError, match="a call of its own"):
        frames_of(per_head(window(2), causal()), 8, 8, torch.device("cpu"))


def test_a_query_that_sees_nothing_gives_zero_and_no_gradient():
    q, k, v = inputs(20, 20)
    o = sparse_attention(q, k, v, frames_of(causal() & keys_at(9), 20, 20, q.device))
    assert (o[:, :9] == 0).all()
    torch.testing.assert_close(o[:, 9:], v[:, 9:10].repeat_interleave(2, 2).expand(-1, 11, -1, -1))
    assert (torch.autograd.grad(o.sum(), q)[0][:, :9] == 0).all()


def test_half_precision_is_summed_in_single():
    q, k, v = inputs(40, 40, dtype=torch.float32)
    pattern = causal() & (window(6) | strided(5) | first(3))
    expected = sparse_attention(q, k, v, frames_of(pattern, 40, 40, q.device))
    half = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    o = sparse_attention(*half, frames_of(pattern, 40, 40, q.device))
    assert o.dtype == torch.bfloat16
    torch.testing.assert_close(o.float(), expected, atol=0.05, rtol=0.05)
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(o.sum(), half))


def test_memory_is_linear_in_the_length(monkeypatch):
    monkeypatch.setattr(tiles, "SIDE", 64)
    pattern, peaks = causal() & (window(64) | fixed(512, 1)), []
    for length in (2048, 8192):

        def step(length=length):
            q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, length, 1, 8))
            sparse_attention(q, k, v, frames_of(pattern, length, length, q.device)).sum().backward()

        step()
        peaks.append(peak_bytes(step))
    assert peaks[1] < 5 * peaks[0]


FLEX = """
import torch
from lengthwise.ops.attention import attention_reference
from lengthwise.ops.flex_attention import block_mask, block_mask_of, flex
from lengthwise.ops.patterns import blocks, causal, fixed, global_tokens, strided, window
from lengthwise.ops.visibility import aligned
torch.manual_seed(0)
q, k, v = torch.randn(2, 33, 4, 6), torch.randn(2, 40, 2, 6), torch.randn(2, 40, 2, 6)
numbers = torch.tensor([[0] * 13 + [1] * 20, [4] * 30 + [7] * 3])
packed = {"query_documents": numbers, "key_documents": numbers}
both = causal() & (window(7) | strided(6)), causal() & (blocks(5) | fixed(5, 2)), global_tokens(0, 9) | window(3, 3)
for pattern in both:
    o = flex(q, k, v, block_mask_of(pattern, 33, 40, q.device))
    torch.testing.assert_close(o, attention_reference(q, k, v, pattern=pattern), atol=1e-5, rtol=1e-5)
    rows = q, k[:, 7:], v[:, 7:]
    o = flex(*rows, block_mask(aligned(pattern, 33, 33, **packed)))
    torch.testing.assert_close(o, attention_reference(*rows, pattern=pattern, **packed), atol=1e-5, rtol=1e-5)
print("equal")
"""


def test_the_same_pattern_goes_to_flex_attention():
    """In a process of its own: FlexAttention traces the pattern, and the run-time checks of shapes can't be traced."""
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", FLEX], capture_output=True, text=True, timeout=300)
    assert ran.stdout == "equal\n", ran.stderr[-2000:]
