import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.measure import peak_bytes
from lengthwise.ops.attention import attention
from lengthwise.ops.chunk_attention import chunk_attention
from lengthwise.ops.dilated_attention import Branch, branches_of, dilated_attention, dilated_attention_reference
from lengthwise.ops.patterns import causal as up_to_itself
from lengthwise.ops.patterns import full

GEOMETRIES = [((3, 6, 12), (1, 2, 4)), ((4, 7), (1, 3)), ((5,), (1,)), ((2, 9, 9), (2, 1, 5))]
"""Lengths that dilations divide and don't, more offsets than heads, a branch with r = 1 that isn't the first."""


def inputs(length, heads=3, head_dim=2, batch=2):
    return [torch.randn(batch, length, heads, head_dim, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def offsets(heads, dilation):
    """The authors' code: heads in as many equal groups as offsets, the last filled up."""
    each = -(-heads // dilation)
    return [head // each for head in range(heads)]


def union(q, k, v, segments, dilations, causal):
    """One softmax over the keys of all branches, each counted as often as a branch shows it."""
    length, heads = q.shape[1:3]
    outputs = []
    for h in range(heads):
        count = torch.zeros(length, length, dtype=q.dtype)
        for w, r in zip(segments, dilations, strict=True):
            own = offsets(heads, r)[h]
            for i in range(length):
                for j in range(i + 1 if causal else length):
                    count[i, j] += i // w == j // w and i % w % r == own and j % w % r == own
        p = count * torch.exp(q[:, :, h] @ k[:, :, h].mT / q.shape[3] ** 0.5)
        outputs.append(p / p.sum(-1, keepdim=True) @ v[:, :, h])
    return torch.stack(outputs, 2)


def same_with_gradients(a, b, leaves, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    weight = torch.randn_like(a)
    for one, other in zip(*(torch.autograd.grad((o * weight).sum(), leaves) for o in (a, b)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@settings(deadline=None, max_examples=30)
@given(
    geometry=st.sampled_from(GEOMETRIES),
    length=st.integers(1, 26),
    heads=st.integers(1, 5),
    causal=st.booleans(),
)
def test_is_one_softmax_over_the_keys_of_all_branches(geometry, length, heads, causal):
    """By value and, where the gradient goes through the weights, by gradient."""
    given = inputs(length, heads)
    y = dilated_attention(*given, branches_of(*geometry), causal=causal, weights="differentiable")
    same_with_gradients(y, union(*given, *geometry, causal), given)


@settings(deadline=None, max_examples=40)
@given(
    geometry=st.sampled_from(GEOMETRIES),
    length=st.integers(1, 30),
    heads=st.integers(1, 5),
    causal=st.booleans(),
    weights=st.sampled_from(["detached", "differentiable"]),
)
def test_equals_the_definition(geometry, length, heads, causal, weights):
    given, settings = inputs(length, heads), {"causal": causal, "weights": weights, "scale": 0.6}
    y = dilated_attention(*given, branches_of(*geometry), **settings)
    same_with_gradients(y, dilated_attention_reference(*given, branches_of(*geometry), **settings), given)


@pytest.mark.parametrize("causal", [True, False])
def test_one_branch_over_the_whole_is_dense_attention(causal):
    given = inputs(13)
    for segment in (13, 40):
        y = dilated_attention(*given, branches_of([segment], [1]), causal=causal)
        same_with_gradients(y, attention(*given, pattern=up_to_itself() if causal else full()), given)


@pytest.mark.parametrize("causal", [True, False])
def test_without_dilation_it_is_attention_inside_chunks(causal):
    given = inputs(13)
    for segments in ([5], [5, 5]):
        y = dilated_attention(*given, branches_of(segments, [1] * len(segments)), causal=causal)
        same_with_gradients(y, chunk_attention(*given, 5, causal=causal), given)


def test_weights_take_a_gradient_or_not():
    """The output is the same, and so is the gradient of the values."""
    given = inputs(12)
    found = {}
    for weights in ("detached", "differentiable"):
        y = dilated_attention(*given, branches_of(*GEOMETRIES[0]), weights=weights)
        found[weights] = y, torch.autograd.grad(y.square().sum(), given)
    (y, slopes), (z, others) = found.values()
    assert torch.equal(y, z)
    torch.testing.assert_close(slopes[2], others[2])
    assert (slopes[0] - others[0]).abs().max() > 1e-3


def test_half_precision_sums_in_float32():
    given = [x.detach().bfloat16() for x in inputs(40)]
    y = dilated_attention(*given, branches_of(*GEOMETRIES[0]))
    assert y.dtype == torch.bfloat16
    wide = dilated_attention(*(x.float() for x in given), branches_of(*GEOMETRIES[0]))
    torch.testing.assert_close(y.float(), wide, rtol=2**-7, atol=2**-7)  # two roundings of 2⁻⁸


def test_memory_grows_with_the_length_alone():
    """Forward and backward: four times the length takes four times the memory."""

    def peak(length):
        given = [torch.randn(1, length, 4, 8, requires_grad=True) for _ in range(3)]
        branches = branches_of((16, 64, 256), (1, 2, 4))
        return peak_bytes(lambda: torch.autograd.grad(dilated_attention(*given, branches).sum(), given))

    assert peak(8192) < 4.5 * peak(2048)


def test_no_tokens():
    assert dilated_attention(*inputs(0), branches_of(*GEOMETRIES[0])).shape == (2, 0, 3, 2)


def test_bad_input():
    for segments, dilations, message in [
        ((4, 8), (1,), "as many dilations"),
        ((), (), "as many dilations"),
        ((4, 8), (2, 4), "must be 1"),
        ((0,), (1,), "at least 1, got 0"),
        ((4, 4), (1, -1), "at least 1, got -1"),
    ]:
        with pytest.raises(InputError, match=message):
            branches_of(segments, dilations)
    with pytest.raises(InputError, match="detached"):
        dilated_attention(*inputs(4), branches_of((4,), (1,)), weights="detach")
    with pytest.raises(InputError, match="past"):
        dilated_attention(*inputs(4), branches_of((4,), (1,)), start=2)


def test_heads_of_one_offset_stand_side_by_side():
    assert Branch(8, 4).heads(8) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
    assert Branch(8, 3).heads(4) == [slice(0, 2), slice(2, 4)]
    assert Branch(8, 4).heads(2) == [slice(0, 1), slice(1, 2)]
    assert [Branch(8, 4).begun(place, 8) for place in range(6)] == [0, 2, 4, 6, 0, 2]
