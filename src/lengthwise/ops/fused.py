"""Calls fused kernels from PyTorch: tensors as arrays, and the work divided among the threads that PyTorch may use.

The kernels release Python's lock, so ordinary threads run them. Unlike a compiler's own pool of threads these may be
used from several threads at once and after a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

SMALL = 200_000
"""Elementary steps below which waking another thread costs more than it saves."""

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def parts(units: int, work: int) -> list[tuple[int, int]]:
    """Ranges that divide `units` evenly, one for each thread; one alone if `work` (elementary steps) is small."""
    count = 1 if work < SMALL else max(1, min(torch.get_num_threads(), units))
    return [(units * p // count, units * (p + 1) // count) for p in range(count)]


def run(calls: Sequence[Callable[[], Any]]) -> None:
    """All `calls` at the same time, the first on this thread. Returns when all have ended."""
    global _pool
    if len(calls) > 1 and _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="lengthwise")
    others = [_pool.submit(call) for call in calls[1:]] if _pool is not None else []
    calls[0]()
    for other in others:
        other.result()


def arrays(*tensors: Tensor) -> list[Any]:
    """The tensors as C-contiguous arrays; what is contiguous already shares its memory."""
    return [t.detach().contiguous().numpy() for t in tensors]


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision that recurrences run in: float64 stays, all else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def starts_or_none(starts: Tensor | None, like: Tensor) -> Tensor:
    """`starts` for a kernel, where a tensor without rows means that nothing starts."""
    return torch.empty(0, 0, dtype=torch.bool, device=like.device) if starts is None else starts


def needs_graph(*tensors: Tensor) -> bool:
    """Whether a call has to go through PyTorch's dispatcher: for a gradient, or because it is being compiled.

    A kernel called directly starts several times sooner, which is what a token decoded alone spends its time on.
    """
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
