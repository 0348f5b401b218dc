import itertools

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from lengthwise.caches.combiner import FixedSummaries
from lengthwise.caches.combiner_axial import AxialSummaries, own_key, weighted_key
from lengthwise.caches.combiner_logsparse import LogsparseSummaries
from lengthwise.caches.combiner_mixture import MixtureSummaries
from lengthwise.caches.documents import by_document
from lengthwise.contract import Layout, state_tensors
from lengthwise.ops.attention import attention
from lengthwise.ops.combiner import combiner_reference

PACKED = Layout.packed([[7, 1, 12, 17], [3, 19, 5]])
FORMS = ["fixed", "logsparse", "axial", "mixture"]


def heads(length, batch=2):
    torch.manual_seed(0)
    return [torch.randn(batch, length, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def empty(form, size, k):
    if form == "logsparse":
        return LogsparseSummaries.empty(k)
    if form == "axial":
        return AxialSummaries.empty(size, k, k[..., 0])
    return (MixtureSummaries if form == "mixture" else FixedSummaries).empty(size, k)


def step(state, q, k, v):
    if isinstance(state, AxialSummaries):
        return state.attend(q, k, v, k[..., 0], summary_key=own_key)
    return state.attend(q, k, v)


def run(form, given, cuts, layout=None, size=4):
    state = empty(form, size, given[1])
    outputs = []
    for begin, end in itertools.pairwise(cuts):
        part = None if layout is None else layout.slice(begin, end)
        o, state = by_document(step, state, [x[:, begin:end] for x in given], part)
        outputs.append(o)
    return torch.cat(outputs, 1), state


def same_with_gradients(a, b, leaves, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    weight = torch.randn_like(a)
    for one, other in zip(*(torch.autograd.grad((o * weight).sum(), leaves) for o in (a, b)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [32, 1, 3, 4, 5, 23, 8])
def test_equals_the_definition(form, length):
    given = heads(length)
    o, _ = run(form, given, [0, length])
    same_with_gradients(o, combiner_reference(*given, form, 4), given)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=25)
@drawn(length=st.integers(1, 30), cut=st.integers(0, 30), size=st.integers(1, 9))
def test_equals_the_definition_at_any_length_cut_and_size(form, length, cut, size):
    given = heads(length, batch=1)
    o, state = run(form, given, [0, min(cut, length), length], size=size)
    torch.testing.assert_close(o, combiner_reference(*given, form, size), rtol=0, atol=1e-10)
    assert [x.shape[1] for x in state_tensors(state)] == list(state.sizes(length))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("layout", [None, PACKED, Layout.padded([37, 20]), Layout.padded([11, 37], "right")])
def test_cuts_change_nothing(form, gradients, layout):
    with torch.set_grad_enabled(gradients):
        given = heads(37)
        whole, after = run(form, given, [0, 37], layout)
        real = torch.ones(2, 37, dtype=torch.bool) if layout is None else ~layout.padding
        for cuts in ([0, 1, 2, 3, 37], list(range(38)), [0, 0, 13, 14, 20, 37, 37], [*range(0, 38, 2), 37]):
            cut, state = run(form, given, cuts, layout)
            torch.testing.assert_close(cut[real], whole[real], rtol=0, atol=1e-12)
            for a, b in zip(state_tensors(state), state_tensors(after), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_one_segment_or_segments_of_one_token_are_dense_attention(form):
    given = heads(2 if form == "logsparse" else 11)
    for size in (11, 1):
        o, _ = run(form, given, [0, given[0].shape[1]], size=size)
        torch.testing.assert_close(o, attention(*given), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_the_past(form):
    given = heads(19)
    whole, _ = run(form, given, [0, 19])
    cut, _ = run(form, given, [0, 6, 11, 12, 19])
    same_with_gradients(cut, whole, given)


@pytest.mark.parametrize("form", FORMS)
def test_documents_are_alone(form):
    given = heads(37)
    o, state = run(form, given, [0, 37], PACKED)
    begin = 0
    for length in (7, 1, 12, 17):
        alone = combiner_reference(*(x[:1, begin : begin + length] for x in given), form, 4)
        torch.testing.assert_close(o[:1, begin : begin + length], alone, rtol=0, atol=1e-10)
        begin += length
    assert state.position.tolist() == [17, 0]  # row 1 ends in padding


@pytest.mark.parametrize("form", FORMS)
def test_a_state_continued_twice_is_not_changed(form):
    with torch.no_grad():
        given = heads(30)
        for cut in (13, 16, 20):
            _, state = run(form, given, [0, cut - 1, cut])
            before = [t.clone() for t in state_tensors(state)]
            first, _ = step(state, *(x[:, :6] for x in given))
            step(state, *(x[:, 7:13] for x in given))
            again, _ = step(state, *(x[:, :6] for x in given))
            assert torch.equal(first, again)
            for old, new in zip(before, state_tensors(state), strict=True):
                assert torch.equal(old, new)


def test_summaries_from_a_point_may_have_weighted_keys():
    q, k, v = heads(14)
    o, _ = AxialSummaries.empty(4, k, k[..., 0]).attend(q, k, v, k[..., 0], summary_key=weighted_key)
    expected = combiner_reference(q, k, v, "axial", 4, summary_key=lambda summary, weighted, point: weighted)
    same_with_gradients(o, expected, (q, k, v))
