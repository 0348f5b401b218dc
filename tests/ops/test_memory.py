import threading

import pytest
import torch

from lengthwise.ops import memory

PIECE = memory.LARGE // 4  # float32 numbers in the smallest piece that is kept


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(memory, "_free", [])


def test_memory_is_used_again_once_it_is_gone():
    first = memory.empty(2, PIECE, dtype=torch.float32)
    place = first.data_ptr()
    del first
    again = memory.empty(PIECE, dtype=torch.float64)  # as many bytes
    assert again.data_ptr() == place
    assert again.shape == (PIECE,)
    assert again.dtype == torch.float64


def test_not_before_all_that_reads_from_it_is_gone():
    first = memory.empty(2, PIECE, dtype=torch.float32)
    place, rest = first.data_ptr(), first[1].detach().numpy()[5:]
    del first
    assert memory.empty(2, PIECE, dtype=torch.float32).data_ptr() != place
    del rest
    found = [memory.empty(2, PIECE, dtype=torch.float32) for _ in range(2)]
    assert place in [x.data_ptr() for x in found]


def test_results_that_are_alive_have_memory_of_their_own():
    alive = [memory.empty(PIECE, dtype=torch.float32).fill_(n) for n in range(5)]
    assert [x.unique().tolist() for x in alive] == [[n] for n in range(5)]


def test_other_sizes_are_other_memory():
    first = memory.empty(2, PIECE, dtype=torch.float32)
    place = first.data_ptr()
    del first
    assert memory.empty(3, PIECE, dtype=torch.float32).untyped_storage().nbytes() == 12 * PIECE
    assert memory.empty(2, PIECE, dtype=torch.float32).data_ptr() == place


def test_no_more_is_kept_than_allowed(monkeypatch):
    monkeypatch.setattr(memory, "KEPT", 3 * memory.LARGE)
    alive = [memory.empty(PIECE, dtype=torch.float32) for _ in range(7)]
    newest = {x.data_ptr() for x in alive[-3:]}
    while alive:
        del alive[0]
    assert {m.data_ptr() for m in memory._free} == newest


@pytest.mark.parametrize("shape", [(), (0, 5), (3, 4)])
def test_small_results_are_pytorchs(shape):
    x = memory.empty(*shape, dtype=torch.complex64)
    assert x.shape == shape
    assert x.dtype == torch.complex64
    del x
    assert memory._free == []


def test_threads_share_it():
    failures = []

    def work(n):
        for k in range(200):
            x = memory.empty(PIECE, dtype=torch.float32)
            x[::4096] = n * 1000 + k
            if x[::4096].unique().tolist() != [n * 1000 + k]:
                failures.append((n, k))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []


def test_what_ends_while_memory_is_taken_doesnt_wait():
    """The end of a tensor can interrupt its own thread anywhere, also where the lock is held."""
    x = memory.empty(PIECE, dtype=torch.float32)
    with memory._lock:
        del x
    memory.empty(2 * PIECE, dtype=torch.float32)
    assert len(memory._free) >= 1


def test_rows_of_nearly_as_many_are_of_the_same_memory():
    first = memory.rows(7100, PIECE // 1000, dtype=torch.float32)
    place, shape = first.data_ptr(), tuple(first.shape)
    assert shape == (7100, PIECE // 1000)
    assert first.is_contiguous()
    del first
    assert memory.rows(7000, PIECE // 1000, dtype=torch.float32).data_ptr() == place


def test_rows_take_little_more_than_they_need():
    for count in (0, 1, 2, 15, 16, 17, 1000, 1025, 4097):
        rows = memory.rows(count, 3, dtype=torch.float32)
        assert rows.shape == (count, 3)
        assert rows.untyped_storage().nbytes() <= 12 * count * 9 / 8
