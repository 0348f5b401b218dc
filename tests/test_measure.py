import contextlib
import threading

import pytest
import torch

from lengthwise.measure import LiveBytes, peak_bytes
from lengthwise.ops import fused


def test_what_is_alive_at_once_counts():
    def work():
        first = torch.zeros(1000)
        del first
        second = torch.zeros(500)
        return second.view(10, 50), second + 1

    assert peak_bytes(work) == 4 * 1000


def test_what_was_there_before_does_not_count():
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x.add_(1).view(10, 100)) == 0


@pytest.mark.parametrize("forked", [False, True], ids=["team", "pool"])
def test_what_the_threads_of_the_kernels_create_counts(forked, monkeypatch):
    """Two hold a tensor at the same time, so that both are alive."""
    monkeypatch.setattr(fused, "_forked", forked)
    together = threading.Barrier(2)

    def work():
        x = torch.zeros(1000)
        with contextlib.suppress(threading.BrokenBarrierError):  # a team of one does both in turn
            together.wait(timeout=5)
        found.append(threading.get_ident())
        return x.sum()

    found = []
    peak = peak_bytes(lambda: fused.run([work, work]))
    assert 4 * 1000 * len(set(found)) <= peak <= 4 * 2002


def test_other_modes_stay_on_their_own_thread():
    class Counter(LiveBytes):
        every_thread = False

    with Counter() as counter:
        fused.run([lambda: torch.zeros(1000)] * 4)
    assert counter.peak <= 4 * 4000


def test_frees_on_another_thread_are_seen():
    with LiveBytes() as counter:
        kept = [torch.zeros(1000)]
        other = threading.Thread(target=kept.clear)
        other.start()
        other.join()
        torch.zeros(10)
        assert counter.live == 40
