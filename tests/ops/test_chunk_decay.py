"""What a log decay does inside a chunk, against the plain exponentials of sums."""

import pytest
import torch

from lengthwise.ops.chunk_decay import ChannelDecay, HeadDecay

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def decays(dim, chunk=8):
    torch.manual_seed(0)
    return -torch.rand(2, 3, chunk, dim, dtype=torch.float64)


def between(g, i, j):
    """exp(g_{j+1} + … + g_i) of tokens counted from 0, j = −1 for the state before the chunk."""
    return g[..., j + 1 : i + 1, :].sum(-2).exp()


@pytest.mark.parametrize("kind", ["head", "channel"])
def test_weights_are_exponentials_of_sums(kind):
    g = decays(1 if kind == "head" else 4)
    chunk = g.shape[-2]
    w = HeadDecay.of(g, 3, g.dtype) if kind == "head" else ChannelDecay.of(g)
    q, k = (torch.randn(2, 3, chunk, 4, dtype=torch.float64) for _ in range(2))
    scores = w.scores(q, k)
    for i in range(chunk):
        torch.testing.assert_close(w.enter[..., i, :], between(g, i, -1), **EXACT)
        torch.testing.assert_close(w.leave[..., i, :], between(g, chunk - 1, i), **EXACT)
        for j in range(chunk):
            expected = (
                (q[..., i, :] * k[..., j, :] * between(g, i, j)).sum(-1) if j <= i else torch.zeros(2, 3).double()
            )
            torch.testing.assert_close(scores[..., i, j], expected, **EXACT)
    torch.testing.assert_close(w.carry.squeeze(), between(g, chunk - 1, -1).squeeze(), **EXACT)


def test_one_row_of_decays_stands_for_all_heads_of_its_batch_row():
    g = decays(1)[:, :2]
    w = HeadDecay.of(g, 4, g.dtype)
    assert w.within.shape[1] == 4
    assert torch.equal(w.within[:, 0], w.within[:, 1])
    assert not torch.equal(w.within[:, 1], w.within[:, 2])


@pytest.mark.parametrize("kind", ["head", "channel"])
def test_total_forgetting_leaves_nothing_and_makes_no_nan(kind):
    g = decays(1 if kind == "head" else 4)
    g[..., 3, :] = -torch.inf
    w = HeadDecay.of(g, 3, g.dtype) if kind == "head" else ChannelDecay.of(g)
    scores = w.scores(torch.ones(2, 3, 8, 4).double(), torch.ones(2, 3, 8, 4).double())
    assert (scores[..., 3:, :3] == 0).all()
    assert (scores[..., 4, 3] > 0).all()
    assert (w.carry == 0).all()
