"""Calls fused kernels from PyTorch: tensors as arrays, and the work divided among the threads that PyTorch may use.

The kernels release Python's lock, so any threads run them: PyTorch's own, or after a fork, which those don't survive,
a pool. Unlike those of a compiler's pool they may be used from several threads at once.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALL = 200_000
"""Elementary steps below which waking another thread costs more than it saves."""

_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_pool: ThreadPoolExecutor | None = None
_forked = False


def _forget_threads() -> None:
    global _pool, _forked
    _pool, _forked = None, True


os.register_at_fork(after_in_child=_forget_threads)


def parts(units: int, work: int) -> list[tuple[int, int]]:
    """Ranges that divide `units` evenly, one for each thread; one alone if `work` (elementary steps) is small."""
    count = 1 if work < SMALL else max(1, min(torch.get_num_threads(), units))
    return [(units * p // count, units * (p + 1) // count) for p in range(count)]


def run(calls: Sequence[Callable[[], Any]]) -> None:
    """All `calls` at the same time. Returns when all have ended.

    They run on the threads of PyTorch's own OpenMP where its library has the entry for it, since those wait in a loop
    for a few milliseconds after each operation and would take the processor from any other thread; else on a pool.
    """
    if len(calls) == 1:
        calls[0]()
    elif _forked or (team := _openmp()) is None:
        _run_in_pool(calls)
    else:
        _run_in_team(team, calls)


@cache
def _openmp() -> Any:
    """The entry of PyTorch's OpenMP library that runs a function on each thread of a team; None without one."""
    libraries = sorted(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"))
    return getattr(ctypes.CDLL(str(libraries[0])), "GOMP_parallel", None) if libraries else None


def _run_in_team(team: Any, calls: Sequence[Callable[[], Any]]) -> None:
    """Each thread takes the next call until none is left, so a team smaller than asked for does all of them too."""
    remaining, failures = iter(calls), list[BaseException]()

    def work(_: Any) -> None:
        try:
            for call in remaining:
                call()
        except BaseException as failure:
            failures.append(failure)

    team(_WORK(work), None, ctypes.c_uint(len(calls)), ctypes.c_uint(0))
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


def arrays(*tensors: Tensor) -> list[Any]:
    """The tensors as C-contiguous arrays; what is contiguous already shares its memory.

    A conjugate that PyTorch has put off is taken now.
    """
    return [t.detach().contiguous().numpy(force=True) for t in tensors]


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
