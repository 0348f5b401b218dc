"""Intervals of documents against counting them one token after the other."""

import pytest
import torch

from lengthwise.ops.intervals import find_intervals


def count(seen, starts, every):
    """begins, (end, first) of finished intervals, the latest one at each token and after the last, and those open."""
    begins, finished, latest, document = [], [], [], False
    now = 0  # what `latest` shows: 0 from before, j the j-th finished here, None nothing
    for t, start in enumerate(starts):
        if start:
            seen, now, document = 0, None, True
            fresh = True
        latest.append(now)
        begins.append(seen == 0)
        seen += 1
        if seen == every:
            seen = 0
            finished.append((t, document and fresh))
            now, fresh = len(finished), False
    return begins, finished, [*latest, now], seen


@pytest.mark.parametrize("every", [1, 3, 4])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 30])
def test_as_counted(every, length):
    generator = torch.Generator().manual_seed(length)
    starts = torch.rand(8, length, generator=generator) < 0.2
    starts[0] = False
    seen = torch.arange(8) % every
    found = find_intervals(seen, length, starts, every)
    for r in range(8):
        begins, finished, latest, left = count(int(seen[r]), starts[r].tolist(), every)
        assert found.begins[r].tolist() == begins
        assert found.ends[r, : len(finished)].tolist() == [t for t, _ in finished]
        assert found.first[r, : len(finished)].tolist() == [first for _, first in finished]
        nothing = found.ends.shape[1] + 1
        assert found.latest[r].tolist() == [nothing if j is None else j for j in latest]
        assert int(found.open[r]) == left
    if not starts.any():
        plain = find_intervals(seen, length, None, every)
        assert torch.equal(plain.latest, found.latest)


def test_lookup():
    found = find_intervals(torch.tensor([1]), 5, torch.tensor([[False, False, False, True, False]]), 2)
    values = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert found.lookup(torch.tensor([[9.0]]), values, -1.0).flatten().tolist() == [9, 1, 1, -1, -1, 3]
