from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.ops import attention as module
from lengthwise.ops import backend, tiles
from lengthwise.ops.attention import attention, attention_reference
from lengthwise.ops.bias import Relative
from lengthwise.ops.document_attention import group_documents
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
from lengthwise.ops.visibility import aligned

PATTERNS = [
    full(),
    causal(),
    window(5),
    window(64),
    window(3, 2),
    window(0, 4),
    window(None, 3),
    causal() & (window(6) | first(3)),
    window(2, 2) | first(2),
    first(4),
    causal() & (window(3) | window(20) & first(5)),
    causal() & (window(3) | strided(5)),
    causal() & strided(3),
    dilated(2, 3, 1),
    causal() & (blocks(6) | fixed(6, 2)),
    fixed(5, 1, skip=2),
    blocks(4, previous=1),
    window(2, 2) | global_tokens(0, 11, 40),
    keys_at(3) & queries_at(17),
    keys_at(),
    causal() & per_head(window(4), strided(3)),
    per_head(window(1), window(2, 1), first(2), full()),
]
DOCUMENTS = torch.tensor([[0] * 9 + [1] * 4 + [2] * 4 + [3] * 12, [5] * 1 + [6] + [7] * 20 + [8] * 7])


def inputs(queries=29, keys=29, heads=4, kv_heads=2, dtype=torch.float64, batch=2, dim=6, value_dim=5):
    torch.manual_seed(0)
    shapes = [(queries, heads, dim), (keys, kv_heads, dim), (keys, kv_heads, value_dim)]
    return [torch.randn(batch, *shape, dtype=dtype, requires_grad=True) for shape in shapes]


def agree(tensors, tolerance=1e-12, also=(), **arguments):
    """Value and every gradient of the fast form are those of the definition."""
    results = []
    for form in (attention_reference, attention):
        o = form(*tensors, **arguments)
        wanted = [*tensors, *also]
        grads = torch.autograd.grad((o * torch.linspace(-1, 1, o.numel()).view_as(o)).sum(), wanted)
        results.append((o, *grads))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.fixture(params=["written", "structured"])
def room(request, monkeypatch):
    """With room for masks, and with none, so that every other way of execution is taken."""
    monkeypatch.setattr(tiles, "SIDE", 8)
    monkeypatch.setattr(tiles, "BLOCK", 3)
    if request.param == "structured":
        monkeypatch.setattr(module, "WRITTEN", 10)
        monkeypatch.setattr(tiles, "KEPT", 700)
    tiles.frames_of.cache_clear()
    yield request.param
    tiles.frames_of.cache_clear()


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("queries", [29, 12, 1])
def test_equals_the_definition(pattern, queries, room):
    agree(inputs(queries), pattern=pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("queries", [29, 17, 1])
def test_packed_equals_the_definition(pattern, queries, room):
    agree(inputs(queries), pattern=pattern, query_documents=DOCUMENTS[:, 29 - queries :], key_documents=DOCUMENTS)


def test_more_queries_than_keys():
    agree(inputs(9, 4), pattern=causal())
    assert attention(*inputs(9, 4))[:, :5].abs().max() == 0


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_bias_as_tensor_or_known_by_tiles(pattern, room):
    bias = torch.randn(1, 4, 12, 29, dtype=torch.float64, requires_grad=True)
    agree(inputs(12), pattern=pattern, bias=bias, also=[bias])
    table = torch.randn(4, 40, dtype=torch.float64, requires_grad=True)
    agree(inputs(12), pattern=pattern, bias=Relative(table, 12), also=[table])


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_without_gradients_the_same_whether_written_or_by_tiles(pattern, monkeypatch):
    q, k, v = inputs(25)
    bias, table = torch.randn(2, 1, 25, 29, dtype=torch.float64), torch.randn(4, 53, dtype=torch.float64)
    packed = {"query_documents": DOCUMENTS[:, 4:], "key_documents": DOCUMENTS}
    for more in ({}, {"bias": bias}, {"bias": Relative(table, 25)}, {"bias": bias, **packed}):
        monkeypatch.setattr(module, "WRITTEN", 2**22)
        expected = attention_reference(q, k, v, pattern=pattern, **more)
        monkeypatch.setattr(module, "WRITTEN", 50)
        with torch.no_grad():
            torch.testing.assert_close(attention(q, k, v, pattern=pattern, **more), expected)


def test_positions_of_keys_that_do_not_follow_each_other(room):
    """First keys kept beside the window, as a cache leaves them."""
    positions = torch.tensor([[0, 1, *range(20, 47)], [0, 1, *range(3, 30)]])
    agree(inputs(12), pattern=causal() & (window(6) | first(2)), positions=positions)


@pytest.mark.parametrize("pattern", [causal(), full(), window(16), causal() & (window(16) | first(2))], ids=repr)
def test_no_square_matrix(pattern):
    """Four times the length takes about four times the memory, forward and backward."""
    peaks = []
    for length in (2048, 8192):
        numbers = (torch.arange(length) // 700)[None]

        def step(length=length, numbers=numbers):
            q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, length, 1, 8))
            for packed in ({}, {"query_documents": numbers, "key_documents": numbers}):
                attention(q, k, v, pattern=pattern, **packed).sum().backward()

        peaks.append(peak_bytes(step))
    assert peaks[1] <= 6 * peaks[0]
    assert peaks[1] < 8192 * 8192


def test_equals_the_fused_kernel_of_the_framework():
    q, k, v = inputs(dtype=torch.float32)
    mask = aligned(causal() & window(7), 29, 29).mask()[:, None]
    expected = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask, enable_gqa=True)
    got = attention(q, k, v, pattern=causal() & window(7))
    torch.testing.assert_close(got, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_grouped_heads_equal_copied_heads():
    q, k, v = inputs()
    o = attention(q, k, v)
    copied = [x.detach().repeat_interleave(2, dim=2).requires_grad_() for x in (k, v)]
    o_copied = attention(q, *copied)
    torch.testing.assert_close(o, o_copied)
    grads = torch.autograd.grad(o.square().sum(), (k, v))
    for grad, of_copies in zip(grads, torch.autograd.grad(o_copied.square().sum(), copied), strict=True):
        torch.testing.assert_close(grad, of_copies.unflatten(2, (2, 2)).sum(3))


def test_decoding_copies_no_keys():
    q, k, v = torch.randn(2, 1, 16, 64), torch.randn(2, 2048, 2, 64), torch.randn(2, 2048, 2, 64)
    assert peak_bytes(lambda: attention(q, k, v)) < k.nbytes / 4


def test_a_query_that_sees_nothing_gives_nothing():
    q, k, v = inputs(4, 4)
    numbers = torch.tensor([[0, 0, 1, 1]])
    for form in ("torch", "tiled", "reference"):
        o = attention(
            q, k, v, query_documents=numbers, key_documents=numbers + torch.tensor([2, 0, 0, 0]), backend=form
        )
        assert o[:, 0].abs().max() == 0
        assert o.isfinite().all()


def test_length_zero():
    for queries, keys in ((0, 0), (0, 3), (2, 0)):
        q, k, v = inputs(queries, keys)
        assert attention(q, k, v).shape == (2, queries, 4, 5)


def test_documents_are_grouped_by_length():
    layout = aligned(causal(), 17, 29, DOCUMENTS[:, 12:], DOCUMENTS)
    groups = group_documents(layout, 2)
    assert groups is not None
    assert groups.sizes == [(1, 1, 4), (1, 4, 4), (1, 7, 7), (1, 10, 20), (1, 12, 12)]
    again = torch.tensor([[0, 1, 0]])
    assert group_documents(aligned(causal(), 3, 3, again, again), 1) is None


def test_documents_that_are_not_one_run_are_still_exact(monkeypatch):
    monkeypatch.setattr(module, "WRITTEN", 10)
    numbers = torch.tensor([[0, 1, 0, 1, 1, 2, 0]])
    agree(inputs(7, 7), pattern=causal(), query_documents=numbers, key_documents=numbers)


def test_backend_is_chosen_by_name():
    q, k, v = inputs()
    for form in ("reference", "torch", "tiled"):
        torch.testing.assert_close(attention(q, k, v, backend=form), attention_reference(q, k, v))
    with backend.use("reference") as forms:
        attention(q, k, v)
    assert "reference" in forms


def test_what_makes_no_sense_is_told():
    q, k, v = inputs(heads=3)
    with pytest.raises(InputError, match="kv_heads must divide heads"):
        attention(q, k, v)
    with pytest.raises(InputError, match="needs the document numbers"):
        attention(*inputs(), pattern=documents())


def test_a_token_that_sees_everything_has_no_mask_written_beside_its_bias(monkeypatch):
    monkeypatch.setattr(module, "written_mask", None)
    table = torch.randn(4, 29, dtype=torch.float64, requires_grad=True)
    agree(inputs(1), bias=Relative(table, 1), also=[table])
    agree(inputs(29), pattern=full(), bias=Relative(torch.randn(4, 57, dtype=torch.float64), 29))
