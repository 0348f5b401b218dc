"""Which form of an op runs: its reference, or one of the fast ones.

Every op takes `backend="auto"` and calls `resolve` with its forms, the fastest first:

    form = resolve(backend, ("numba", "torch", "reference"), q, k, v)

`use` decides for every op called inside it, so that a whole module can be run on the definitions alone:

    with use("reference"):
        expected, _ = mixer(x)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from lengthwise.errors import unknown

KNOWN = ("reference", "torch", "numba", "tiled")
"""The forms an op can have: the definition, plain PyTorch, fused processor kernels, attention by tiles."""

_wanted: str | None = None
_seen: set[str] | None = None


def resolve(backend: str, available: Sequence[str], *tensors: Tensor | None) -> str:
    """The form to run, out of `available` (fastest first).

    backend: the caller's choice; "auto" takes what `use` asks for if the op has it, else the first form that can read
        all of `tensors` ("numba" reads the processor's memory only).

    Raises InputError if the op has no form of the given name.
    """
    if _seen is not None:
        _seen.update(available)
    if backend != "auto":
        if backend not in available:
            raise unknown("backend", backend, [*available, "auto"])
        return backend
    if _wanted in available:
        return str(_wanted)
    if available[0] != "numba":
        return available[0]
    for tensor in tensors:
        if tensor is not None and not tensor.is_cpu:
            return available[1]
    return available[0]


@contextmanager
def use(name: str) -> Iterator[set[str]]:
    """Run the ops inside with the form `name`; one that has no such form chooses as usual.

    Gives the set of forms of the ops called inside, which fills as they are called; empty if the code calls none that
    has a choice. Holds for the whole process, not for one thread.
    """
    global _wanted, _seen
    if name not in (*KNOWN, "auto"):
        raise unknown("backend", name, [*KNOWN, "auto"])
    before, seen = (_wanted, _seen), set[str]()
    _wanted, _seen = (None if name == "auto" else name), seen
    try:
        yield seen
    finally:
        _wanted, _seen = before
        if _seen is not None:
            _seen.update(seen)
