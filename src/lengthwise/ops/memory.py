"""Memory for the results of fused kernels, which is used again once they are gone.

Memory fresh from the system costs a page fault for every 4 KB, together several times what a kernel takes that goes
over it once. PyTorch keeps freed memory on an accelerator; on the processor it goes back to the system.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import deque

import torch
from torch import Tensor

LARGE = 2**20
"""Bytes from which on memory is kept; the C library keeps smaller pieces itself."""

KEPT = 2**29
"""Bytes of free memory that are kept at most."""

_lock = threading.Lock()
_returned: deque[Tensor] = deque()
_free: list[Tensor] = []


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the processor. From a megabyte on it can't be resized in place."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return torch.empty(shape, dtype=dtype)
    memory = _take(size)
    # An array of its own, which ends with the last tensor that reads from it.
    array = memory.view(dtype).view(shape).numpy()
    weakref.finalize(array, _give_back, memory).atexit = False
    return torch.from_numpy(array)


def rows(count: int, *shape: int, dtype: torch.dtype) -> Tensor:
    """The first `count` rows of such a tensor, [count, *shape], which has up to 1/8 more: for counts that differ a
    little from call to call, and would each find no memory of their size."""
    step = max(1, 2 ** max(0, count.bit_length() - 4))
    return empty(-(-count // step) * step, *shape, dtype=dtype)[:count]


def _take(size: int) -> Tensor:
    with _lock:
        _tidy()
        for place in reversed(range(len(_free))):
            if _free[place].nbytes == size:
                return _free.pop(place)
    return torch.empty(size, dtype=torch.uint8)


def _give_back(memory: Tensor) -> None:
    _returned.append(memory)
    # The end of a tensor can interrupt its own thread anywhere, also where it holds the lock, so nothing waits here.
    if _lock.acquire(blocking=False):
        try:
            _tidy()
        finally:
            _lock.release()


def _tidy() -> None:
    """Take in what was returned and let the oldest go; with the lock held."""
    while _returned:
        _free.append(_returned.popleft())
    held = sum(memory.nbytes for memory in _free)
    while held > KEPT:
        held -= _free.pop(0).nbytes


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
