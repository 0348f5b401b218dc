import os
import signal
import threading
import time

import pytest
import torch

from lengthwise.ops import fused


@pytest.mark.parametrize("units", [0, 1, 2, 7])
def test_parts_cover_each_unit_once(units):
    ranges = fused.parts(units, fused.SMALL)
    assert [u for first, last in ranges for u in range(first, last)] == list(range(units))


def test_small_work_stays_on_one_thread():
    assert fused.parts(8, fused.SMALL - 1) == [(0, 8)]


def test_no_more_parts_than_pytorch_has_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert len(fused.parts(8, fused.SMALL)) == 1
    finally:
        torch.set_num_threads(before)


@pytest.fixture(params=["PyTorch's own threads", "a pool"])
def threads(request, monkeypatch):
    if request.param == "a pool":
        monkeypatch.setattr(fused, "_openmp", lambda: None)
    elif fused._openmp() is None:
        pytest.skip("PyTorch's OpenMP library has no entry for a team here")


def test_calls_run_at_the_same_time(threads):
    together = threading.Barrier(2, timeout=10)
    fused.run([together.wait, together.wait])
    assert not together.broken


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_any_part_is_raised(threads, error):
    def fail():
        raise error("part")

    with pytest.raises(error, match="part"):
        fused.run([lambda: None, fail])


def test_each_call_runs_once_and_calls_from_other_threads_do_not_mix(threads):
    done = []

    def several(name):
        fused.run([lambda n=n: done.append((name, n)) for n in range(5)])

    others = [threading.Thread(target=several, args=(name,)) for name in "abc"]
    for other in others:
        other.start()
    for other in others:
        other.join(timeout=10)
    assert sorted(done) == [(name, n) for name in "abc" for n in range(5)]


def test_calls_run_after_a_fork(threads):
    fused.run([lambda: None, lambda: None])
    child = os.fork()
    if child == 0:
        done = []
        fused.run([lambda: done.append(0), lambda: done.append(1)])
        os._exit(0 if sorted(done) == [0, 1] else 1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended[0] == child
    assert os.waitstatus_to_exitcode(ended[1]) == 0
