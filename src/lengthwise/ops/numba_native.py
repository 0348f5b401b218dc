"""Kernels that are called by their address, with a row of integers: sizes, and addresses of what is read and written.

    given = taken, parts, ...          the row; `taken` counts the parts that threads have begun with

`fused.Native` calls them. Nothing of Python runs in them, on any thread.
"""

# mypy: disable-error-code="call-arg"
# ruff: noqa: ARG001  (numba passes what an intrinsic may not need)

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic

ROW = types.CPointer(types.int64)
"""The type of the row of integers."""


def compiled(function: Callable[..., Any]) -> Any:
    """Decorator: compiled as a function of the row, and kept on disk between runs."""
    plain = inspect.unwrap(function)  # the tests wrap every function of the package to check its annotations
    return cfunc(types.void(ROW), nopython=True, error_model="numpy", cache=True)(plain)


@intrinsic
def pointer(typingctx, address, like):
    """The numbers at an address, which are of the type of `like`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.int64, like), generate


@intrinsic
def take(typingctx, given):
    """The number of the next part that no thread has begun with, which counts as begun from now on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", args[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(ROW), generate


@intrinsic
def real(typingctx, bits):
    """The float64 that has the given 64 bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), generate
