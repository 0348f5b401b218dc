from __future__ import annotations

import itertools

import pytest
import torch

from lengthwise.caches import FullCache, WindowedCache
from lengthwise.contract import Layout

KINDS = ("full", "windowed")


def tokens(begin, end, batch=2):
    """Keys and values that tell which token they are."""
    index = torch.arange(begin, end, dtype=torch.float32)
    keys = (index[None, :, None, None] + 1000 * torch.arange(batch)[:, None, None, None]).expand(batch, -1, 2, 3)
    return keys.clone(), -keys


def empty(kind):
    return FullCache.empty(*tokens(0, 0)) if kind == "full" else WindowedCache.empty(6, 2, *tokens(0, 0))


def run(cache, cuts, layout=None):
    context = None
    for begin, end in itertools.pairwise(cuts):
        part = None if layout is None else layout.slice(begin, end)
        context, cache = cache.extend(*tokens(begin, end), part)
    return context, cache


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("layout", [None, Layout.packed([[7, 1, 12], [3, 9, 5, 3]])])
def test_cuts_change_nothing(kind, gradients, layout):
    with torch.set_grad_enabled(gradients):
        _, whole = run(empty(kind), [0, 20], layout)
        for cuts in ([0, 1, 2, 3, 20], list(range(21)), [0, 0, 13, 14, 20, 20]):
            _, cut = run(empty(kind), cuts, layout)
            assert torch.equal(cut.keys, whole.keys)
            assert torch.equal(cut.values, whole.values)
            past = [torch.as_tensor(c.past).expand(2).tolist() for c in (cut, whole)]
            assert past == [[20, 20]] * 2 if layout is None else past == [[12, 3]] * 2
            if kind == "windowed":
                assert torch.equal(cut.first_keys, whole.first_keys)
                assert torch.equal(cut.first_values, whole.first_values)


def test_windowed_keeps_the_window_and_the_first_of_each_row():
    _, cache = run(empty("windowed"), [0, 20], Layout.packed([[7, 1, 12], [3, 9, 5, 3]]))
    assert cache.keys[:, :, 0, 0].tolist() == [[15, 16, 17, 18, 19], [1015, 1016, 1017, 1018, 1019]]
    assert cache.first_keys[:, :, 0, 0].tolist() == [[8, 9], [1017, 1018]]
    context, _ = cache.extend(*tokens(20, 22))
    assert context.keys[0, :, 0, 0].tolist() == [8, 9, 15, 16, 17, 18, 19, 20, 21]
    assert context.positions.tolist() == [[0, 1, *range(7, 14)], [-1, -1, -2, -1, 0, 1, 2, 3, 4]]
    assert context.documents.tolist() == [[0] * 9, [-1, -1, -1, -1, 0, 0, 0, 0, 0]]
    assert not context.consecutive


def test_full_goes_on_with_the_last_document():
    _, cache = run(empty("full"), [0, 6], Layout.packed([[2, 4], [5]]))
    assert cache.start.tolist() == [2, 6]
    context, after = cache.extend(*tokens(6, 8))
    assert context.documents.tolist() == [[-1, -1, 0, 0, 0, 0, 0, 0], [-1] * 6 + [0, 0]]
    assert context.positions[:, -2:].tolist() == [[4, 5], [0, 1]]
    assert after.past.tolist() == [6, 2]


def test_rows_that_all_begin_at_the_beginning_need_no_documents():
    context, cache = run(empty("full"), [0, 6], Layout.packed([[6], [6]]))
    assert context.documents is None
    assert cache.start is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_continued_twice_is_not_changed(kind):
    with torch.no_grad():
        _, cache = run(empty(kind), list(range(10)))
        before = cache.keys.clone()
        first, one = cache.extend(*tokens(50, 51))
        second, two = cache.extend(*tokens(70, 71))
        third, _ = one.extend(*tokens(51, 52))
    assert torch.equal(cache.keys, before)
    assert first.keys[0, -1, 0, 0] == 50
    assert second.keys[0, -1, 0, 0] == 70
    assert third.keys[0, -2:, 0, 0].tolist() == [50, 51]
    assert one.keys[0, -1, 0, 0] == 50
    assert two.keys[0, -1, 0, 0] == 70


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoded_token_copies_no_past(kind):
    with torch.no_grad():
        _, cache = run(empty(kind), [0, 300])
        places = set()
        for at in range(300, 400):
            _, cache = cache.extend(*tokens(at, at + 1))
            places.add(cache.keys.untyped_storage().data_ptr())
    assert len(places) < (2 if kind == "full" else 3) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_mapped_cache_owns_its_tensors(kind):
    with torch.no_grad():
        _, cache = run(empty(kind), list(range(10)))
        copy, chosen = cache.map(torch.clone), cache.select(torch.tensor([1, 1]))
        _, a = copy.extend(*tokens(90, 91))
        _, b = cache.extend(*tokens(80, 81))
        _, c = cache.detach().extend(*tokens(60, 61))
    assert [x.keys[0, -1, 0, 0].item() for x in (a, b, c)] == [90, 80, 60]
    assert chosen.keys[:, -1, 0, 0].tolist() == [1008, 1008]
    assert cache.nbytes == sum(t.nbytes for t in vars(copy).values() if isinstance(t, torch.Tensor))


def test_gradients_reach_the_past():
    keys, values = (t.requires_grad_() for t in tokens(0, 5))
    _, cache = FullCache.empty(keys, values).extend(keys, values)
    context, _ = cache.extend(*tokens(5, 6))
    context.keys.sum().backward()
    assert keys.grad.eq(1).all()


def test_a_cache_filled_in_inference_mode_goes_on_outside():
    with torch.inference_mode():
        _, cache = run(empty("full"), [0, 4, 5])
    with torch.no_grad():
        context, _ = cache.extend(*tokens(5, 6))
    assert context.keys[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_window_of_one_keeps_nothing():
    _, cache = WindowedCache.empty(1, 0, *tokens(0, 0)).extend(*tokens(0, 4))
    assert cache.keys.shape == (2, 0, 2, 3)
    context, _ = cache.extend(*tokens(4, 5))
    assert context.keys.shape[1] == 1
