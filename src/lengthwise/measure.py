"""Measuring time, memory and the machine's own limits, so that every figure can be given as a ratio in one run."""

from __future__ import annotations

import statistics
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def synchronize() -> None:
    """Wait for the accelerator, where there is one, so that the clock sees finished work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(fn: Callable[[], Any]) -> float:
    """Wall time of one call."""
    synchronize()
    begin = time.perf_counter()
    fn()
    synchronize()
    return time.perf_counter() - begin


def interleaved(
    functions: Mapping[str, Callable[[], Any]], repeats: int = 7, warmup: int = 1, limit: float = 60.0
) -> dict[str, float]:
    """Median seconds of each function, called in turn so that a drift of the machine's speed reaches all of them.

    Stops after `repeats` rounds, or after the first round that ends beyond `limit` seconds.
    """
    for _ in range(warmup):
        for fn in functions.values():
            fn()
    times: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    for _ in range(repeats):
        for name, fn in functions.items():
            times[name].append(seconds(fn))
        if time.perf_counter() - begin > limit:
            break
    return {name: statistics.median(values) for name, values in times.items()}


def matmul_rate(dtype: torch.dtype = torch.float32, size: int = 1536, device: str = "cpu") -> float:
    """FLOP/s of a large square matrix product: the limit for what is made of matrix products."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / interleaved({"product": lambda: a @ b}, repeats=9, warmup=3)["product"]


def read_bandwidth(megabytes: int = 512, device: str = "cpu") -> float:
    """Bytes per second at which a buffer larger than the caches is read: the limit for what is read once."""
    buffer = torch.ones(megabytes * 2**20 // 4, device=device)
    return buffer.numel() * 4 / interleaved({"read": lambda: buffer.sum()}, repeats=7, warmup=2)["read"]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are created while it is active and still alive, and their peak.

    Those that `ops.fused.run` has other threads create count too; those of any other thread aren't seen.
    """

    every_thread = True

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: dict[int, int] = {}
        self._gone: deque[int] = deque()
        self._lock = threading.RLock()  # the end of an object can interrupt a thread that holds it, and create tensors

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        with self._lock:
            # The end of a storage can interrupt any thread anywhere, so it only leaves its key, for here.
            while self._gone:
                self.live -= self._seen.pop(self._gone.popleft(), 0)
            if key in self._seen:
                return
            self._seen[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone.append, key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it returns, unless it returns what already existed."""
        kwargs = kwargs or {}
        existing = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in existing:
                self._count(tensor)
        return result


def peak_bytes(fn: Callable[[], Any]) -> int:
    """The largest number of bytes of tensors created inside `fn` that were alive at one moment, on all threads that the
    library's kernels share their work among.

    Scratch memory inside a single operation isn't seen; what an operation returns or keeps for its backward is.
    """
    with LiveBytes() as counter:
        fn()
    return counter.peak
