from __future__ import annotations

import pytest
import torch

from lengthwise.ops.flash_attention import merge
from lengthwise.ops.partial_attention import partial_attention, partial_gradients


def inputs(dtype=torch.float64, value_dim=4, queries=5, keys=7):
    torch.manual_seed(0)
    return (
        torch.randn(2, queries, 3, 4, dtype=dtype),
        torch.randn(2, keys, 3, 4, dtype=dtype),
        torch.randn(2, keys, 3, value_dim, dtype=dtype),
    )


def softmax(q, k, v, mask=None, scale=0.5):
    s = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    s = s if mask is None else s.masked_fill(~mask, -torch.inf)
    p = s.softmax(-1).nan_to_num(0)
    return torch.einsum("bhij,bjhd->bihd", p, v), s.logsumexp(-1).transpose(1, 2)


@pytest.mark.parametrize("value_dim", [4, 6])  # the fused kernel and the products written out
def test_it_is_softmax_attention_and_its_denominator(value_dim):
    q, k, v = inputs(value_dim=value_dim)
    mask = torch.rand(2, 1, 5, 7) < 0.5
    mask[0, :, 2] = False
    for given in (None, mask):
        for part, whole in zip(partial_attention(q, k, v, mask=given), softmax(q, k, v, given), strict=True):
            torch.testing.assert_close(part, whole)
    o, lse = partial_attention(q, k, v, mask=mask)
    assert (o[0, 2] == 0).all()
    assert (lse[0, 2] == -torch.inf).all()
    q = torch.randn(2, 7, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(
        partial_attention(q, k, v, is_causal=True)[1], softmax(q, k, v, torch.ones(7, 7).bool().tril())[1]
    )


@pytest.mark.parametrize("value_dim", [4, 6])
def test_the_output_is_differentiable(value_dim):
    q, k, v = (x.requires_grad_() for x in inputs(value_dim=value_dim, queries=3, keys=3))
    mask = torch.rand(2, 3, 3, 3) < 0.6
    mask[0, 0, 1] = False
    torch.autograd.gradcheck(lambda *x: partial_attention(*x, mask=mask, scale=0.3)[0], (q, k, v))
    torch.autograd.gradcheck(lambda *x: partial_attention(*x, is_causal=True)[0], (q, k, v))


@pytest.mark.parametrize("value_dim", [4, 6])
def test_parts_add_up_to_the_whole_and_so_do_their_gradients(value_dim):
    q, k, v = (x.requires_grad_() for x in inputs(value_dim=value_dim))
    mask = torch.rand(2, 1, 5, 7) < 0.5
    mask[0, :, 2] = False
    o, lse = softmax(q, k, v, mask)
    grad = torch.randn_like(o)
    whole = torch.autograd.grad(o, (q, k, v), grad)
    cuts = [slice(0, 3), slice(3, 7)]
    parts = [partial_attention(q, k[:, c], v[:, c], mask=mask[..., c]) for c in cuts]
    for one, other in zip(merge(*parts[0], *parts[1]), (o, lse), strict=True):
        torch.testing.assert_close(one, other)
    o, lse = o.detach(), lse.detach().masked_fill(lse == -torch.inf, 0)
    shares = [partial_gradients(grad, q, k[:, c], v[:, c], o, lse, mask=mask[..., c]) for c in cuts]
    torch.testing.assert_close(sum(share[0] for share in shares), whole[0])
    for at in (1, 2):
        torch.testing.assert_close(torch.cat([share[at] for share in shares], 1), whole[at])


@pytest.mark.parametrize("value_dim", [4, 6])
def test_numbers_of_a_head_need_not_stand_side_by_side(value_dim):
    q, k, v = inputs(value_dim=value_dim)
    apart = [torch.stack([x, x + 1], -1)[..., 0].requires_grad_() for x in (q, k, v)]
    o, lse = partial_attention(*apart)
    torch.testing.assert_close(o, partial_attention(q, k, v)[0])
    shares = partial_gradients(torch.ones_like(o).expand_as(o), *apart, o, lse)
    for share, expected in zip(shares, torch.autograd.grad(o.sum(), apart), strict=True):
        torch.testing.assert_close(share, expected)


def test_nothing_to_see_and_nobody_to_see_it():
    q, k, v = (x.requires_grad_() for x in inputs())
    o, lse = partial_attention(q, k[:, :0], v[:, :0])
    assert o.shape == (2, 5, 3, 4)
    assert not o.any()
    assert (lse == -torch.inf).all()
    assert all(not g.any() for g in torch.autograd.grad(o.sum(), (q, k, v)))
    assert partial_attention(q[:, :0], k, v)[0].shape == (2, 0, 3, 4)
    assert [g.shape for g in partial_gradients(o[:, :0], q[:, :0], k, v, o[:, :0], lse[:, :0])] == [
        (2, 0, 3, 4),
        (2, 7, 3, 4),
        (2, 7, 3, 4),
    ]
