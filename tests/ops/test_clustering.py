from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.ops import clustering


def points(length=20, heads=2, clusters=3, dim=4):
    torch.manual_seed(0)
    return torch.randn(2, length, heads, dim, dtype=torch.float64), torch.randn(heads, clusters, dim).double()


def test_nearest_and_closest_are_by_distance():
    z, centroids = points()
    apart = (z[:, :, :, None] - centroids).square().sum(-1)
    assert torch.equal(clustering.nearest(z, centroids), apart.argmin(-1))
    chosen = clustering.closest(z, centroids, 5)
    expected = apart.permute(0, 2, 3, 1).argsort(-1)[..., :5].sort(-1).values
    assert torch.equal(chosen, expected)


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(0, 30), count=st.integers(1, 40), block=st.sampled_from([1, 4, 128]), seed=st.integers(0, 999)
)
def test_neighbours_show_each_token_the_last_of_its_group(length, count, block, seed):
    groups = torch.randint(0, 4, (2, length, 3), generator=torch.Generator().manual_seed(seed))
    sets = clustering.neighbours(groups, count, block)
    seen = torch.zeros(2, 3, length, length, dtype=torch.bool)
    for b, h, s, a in torch.cartesian_prod(*map(torch.arange, sets.index.shape)).tolist():
        if sets.index[b, h, s, a] >= 0:
            places = sets.places[b, h, s]
            there = (sets.read[b, h, s] >= 0) & (places >= sets.first[b, h, s, a]) & (places <= sets.last[b, h, s, a])
            assert not seen[b, h, sets.index[b, h, s, a]].any()  # each token is in one set
            seen[b, h, sets.index[b, h, s, a], sets.read[b, h, s][there]] = True
    for b, i, h in torch.cartesian_prod(*map(torch.arange, groups.shape)).tolist():
        own = (groups[b, : i + 1, h] == groups[b, i, h]).nonzero().flatten()[-count:]
        assert seen[b, h, i].nonzero().flatten().tolist() == own.tolist()


@settings(max_examples=30, deadline=None)
@given(length=st.integers(0, 20), count=st.integers(0, 5), seed=st.integers(0, 999))
def test_latest_members_end_with_the_last(length, count, seed):
    groups = torch.randint(-1, 3, (2, length, 2), generator=torch.Generator().manual_seed(seed))
    index, filled = clustering.latest_members(groups, 3, count)
    for b, c, h in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2)).tolist():
        own = (groups[b, :, h] == c).nonzero().flatten().tolist()
        own = own[max(len(own) - count, 0) :]
        assert filled[b, c, h] == len(own)
        assert index[b, c, count - len(own) :, h].tolist() == own


def test_statistics_leave_out_what_is_absent():
    z, centroids = points()
    assigned = clustering.nearest(z, centroids)
    absent = torch.rand(2, 20) < 0.5
    counts, sums = clustering.statistics(z, assigned, 3, absent)
    for h in range(2):
        for c in range(3):
            own = z[:, :, h][(assigned[:, :, h] == c) & ~absent]
            assert counts[h, c] == len(own)
            torch.testing.assert_close(sums[h, c], own.sum(0), atol=1e-12, rtol=1e-12)


def test_centroids_move_to_the_means_of_what_is_assigned():
    """And a smoothed count keeps one that nothing is nearest to finite."""
    z, centroids = points(length=200)
    counts, sums, near = torch.zeros(2, 3).double(), centroids.clone(), centroids
    for _ in range(400):
        assigned = clustering.nearest(z, near)
        counts, sums, near = clustering.moved(counts, sums, *clustering.statistics(z, assigned, 3), decay=0.9)
    for h in range(2):
        for c in range(3):
            mean = z[:, :, h][assigned[:, :, h] == c].mean(0)
            torch.testing.assert_close(near[h, c], mean, atol=1e-5, rtol=1e-5)  # the smoothing is 1e-5 of the count
    dead, _, far = clustering.moved(
        torch.tensor([[5.0, 0.0]]), torch.ones(1, 2, 3), torch.zeros(1, 2), torch.zeros(1, 2, 3), 0.9
    )
    assert dead[0, 1] == 0
    assert far.isfinite().all()


def test_the_average_is_the_published_one():
    counts, sums = torch.tensor([[3.0, 1.0]]), torch.tensor([[[3.0], [2.0]]])
    n, s = torch.tensor([[4.0, 0.0]]), torch.tensor([[[8.0], [0.0]]])
    after, moved, near = clustering.moved(counts, sums, n, s, decay=0.75)
    assert after.tolist() == [[3.25, 0.75]]
    assert moved.tolist() == [[[4.25], [1.5]]]
    smoothed = (after + 1e-5) / (4 + 2e-5) * 4
    torch.testing.assert_close(near, moved / smoothed[..., None])
