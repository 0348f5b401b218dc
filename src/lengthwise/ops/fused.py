"""Calls fused kernels from PyTorch: tensors as arrays, and the work divided among the threads that PyTorch may use.

The kernels release Python's lock, so any threads run them: PyTorch's own, or after a fork, which those don't survive,
a pool. Unlike those of a compiler's pool they may be used from several threads at once.

`run` calls anything; `Native` is a kernel that Python calls by its address alone, for what a token decoded alone needs:
there the passing of arrays, and of Python's lock from thread to thread, would take longer than the work.
"""

from __future__ import annotations

import ctypes
import os
import struct
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as _modes

SMALL = 200_000
"""Elementary steps below which waking another thread costs more than it saves."""

REAL = (torch.float32, torch.float64)
"""The types of numbers that kernels are compiled for."""

_PLAIN = (Tensor, nn.Parameter)

_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_pool: ThreadPoolExecutor | None = None
_forked = False


def _forget_threads() -> None:
    global _pool, _forked
    _pool, _forked = None, True


os.register_at_fork(after_in_child=_forget_threads)


def parts(units: int, work: int) -> list[tuple[int, int]]:
    """Ranges that divide `units` evenly, one for each thread; one alone if `work` (elementary steps) is small."""
    among = count(units, work)
    return [(units * p // among, units * (p + 1) // among) for p in range(among)]


def count(units: int, work: int) -> int:
    """How many threads share `units` of work, which is `work` elementary steps in all."""
    return 1 if work < SMALL else max(1, min(torch.get_num_threads(), units))


def run(calls: Sequence[Callable[[], Any]]) -> None:
    """All `calls` at the same time. Returns when all have ended.

    They run on the threads of PyTorch's own OpenMP where its library has the entry for it, since those wait in a loop
    for a few milliseconds after each operation and would take the processor from any other thread; else on a pool.
    """
    if len(calls) == 1:
        calls[0]()
    elif _forked or (team := _openmp()) is None:
        _run_in_pool(watched(calls))
    else:
        _run_in_team(team, watched(calls))


def watched(calls: Sequence[Callable[[], Any]]) -> Sequence[Callable[[], Any]]:
    """The calls, each under those modes of this thread that watch the operations of every thread."""
    modes = [mode for mode in _modes() if getattr(mode, "every_thread", False)]

    def under(call: Callable[[], Any]) -> None:
        with ExitStack() as entered:
            for mode in modes:
                if mode not in _modes():
                    entered.enter_context(mode)
            call()

    return [partial(under, call) for call in calls] if modes else calls


@cache
def _openmp() -> Any:
    """The entry of PyTorch's OpenMP library that runs a function on each thread of a team; None without one."""
    entry = _entry("GOMP_parallel")
    if entry is not None:
        entry.argtypes, entry.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return entry


@cache
def gemm(dtype: torch.dtype) -> int | None:
    """The address of the matrix product of PyTorch's BLAS for numbers of a type; None where it shows none."""
    entry = _entry("sgemm_" if dtype == torch.float32 else "dgemm_")
    return None if entry is None else ctypes.cast(entry, ctypes.c_void_p).value


def _entry(name: str) -> Any:
    """A function of PyTorch's library for the processor, or of those that it uses; None without one of this name."""
    libraries = sorted(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"))
    return getattr(ctypes.CDLL(str(libraries[0])), name, None) if libraries else None


def _run_in_team(team: Any, calls: Sequence[Callable[[], Any]]) -> None:
    """Each thread takes the next call until none is left, so a team smaller than asked for does all of them too."""
    remaining, failures = iter(calls), list[BaseException]()

    def work(_: Any) -> None:
        try:
            for call in remaining:
                call()
        except BaseException as failure:
            failures.append(failure)

    team(_WORK(work), None, len(calls), 0)
    if failures:
        raise failures[0]


def _run_in_pool(calls: Sequence[Callable[[], Any]]) -> None:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="lengthwise")
    others = [_pool.submit(call) for call in calls[1:]]
    calls[0]()
    for other in others:
        other.result()


class Native:
    """A compiled function of the address of a row of 64-bit integers, `numba_native.compiled`, and how it is called.

    The first of the integers counts the parts that were taken: each thread takes parts until none is left.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled, self.address = compiled, compiled.address
        self.call = _WORK(compiled.address)

    def __call__(self, parts: int, *given: int) -> None:
        """Run the function on a thread for each of so many parts, with 0, `parts` and the `given` integers."""
        row = array("q", (0, parts, *given))
        address, _ = row.buffer_info()
        if parts == 1:
            self.call(address)
        elif _forked or (team := _openmp()) is None:
            _run_in_pool([partial(self.call, address)] * parts)
        else:
            team(self.address, address, parts, 0)


def arrays(*tensors: Tensor) -> list[Any]:
    """The tensors as C-contiguous arrays; what is contiguous already shares its memory.

    A conjugate that PyTorch has put off is taken now.
    """
    return [t.detach().contiguous().numpy(force=True) for t in tensors]


def direct(dtype: torch.dtype, *tensors: Tensor | None) -> bool:
    """Whether a kernel can be given the addresses of tensors: no graph is wanted, and the numbers of each, which are of
    this type, lie one after the other in the processor's memory."""
    return readable(dtype, *tensors) and all(t is None or t.is_contiguous() for t in tensors)


def readable(dtype: torch.dtype, *tensors: Tensor | None) -> bool:
    """The same of a kernel that is told how the numbers of each lie."""
    if dtype not in REAL or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    graph = torch.is_grad_enabled()
    for t in tensors:
        if t is None:
            continue
        if type(t) not in _PLAIN or t.dtype != dtype or not t.is_cpu or (graph and t.requires_grad) or t.is_neg():
            return False
    return True


@lru_cache(maxsize=256)
def bits(number: float) -> int:
    """The integer that has the bits of a number in float64, by which kernels are given numbers."""
    return int(struct.unpack("q", struct.pack("d", number))[0])


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision that recurrences run in: float64 stays, all else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def work_numbers(real: torch.dtype, *tensors: Tensor | None) -> torch.dtype:
    """The dtype `real`, or that of complex numbers with such parts if any of `tensors` is complex."""
    if any(t is not None and t.is_complex() for t in tensors):
        return torch.complex128 if real == torch.float64 else torch.complex64
    return real


def starts_or_none(starts: Tensor | None, like: Tensor) -> Tensor:
    """`starts` for a kernel, where a tensor without rows means that nothing starts."""
    return torch.empty(0, 0, dtype=torch.bool, device=like.device) if starts is None else starts


def needs_graph(*tensors: Tensor) -> bool:
    """Whether a call has to go through PyTorch's dispatcher: for a gradient, or because it is being compiled.

    A kernel called directly starts several times sooner, which is what a token decoded alone spends its time on.
    """
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
