import threading

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


def test_calls_run_at_the_same_time():
    together = threading.Barrier(2, timeout=10)
    fused.run([together.wait, together.wait])
    assert not together.broken


def test_an_error_in_any_part_is_raised():
    def fail():
        raise RuntimeError("part")

    with pytest.raises(RuntimeError, match="part"):
        fused.run([lambda: None, fail])
