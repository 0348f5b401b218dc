"""Kernels that are called by their address, with a row of integers: sizes, and addresses of what is read and written.

    given = taken, parts, ...          the row; `taken` counts the parts that threads have begun with

`fused.Native` calls them. Nothing of Python runs in them, on any thread. And, the other way, `multiply`: the matrix
product of PyTorch's own library, called by kernels.
"""

# mypy: disable-error-code="call-arg"
# ruff: noqa: ARG001  (numba passes what an intrinsic may not need)

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import cfunc, types
from numba.core.cgutils import alloca_once_value
from numba.extending import intrinsic

from lengthwise.ops.numba_math import kernel

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


@kernel
def multiply(gemm, factor, a, b, kept, c):
    """C ← factor · A B + kept · C, by the function at the address `gemm`: `fused.gemm`.

    factor, kept: numbers. a, b, c: matrices of their type, float32 or float64, c with its rows one after the other; a
    and b so too, or turned.
    """
    a_turned, b_turned = a.strides[1] != a.itemsize, b.strides[1] != b.itemsize
    a_step, b_step = a.strides[1 if a_turned else 0] // a.itemsize, b.strides[1 if b_turned else 0] // b.itemsize
    # The step between rows must be at least their length, even where there is one row.
    a_step, b_step = max(a_step, a.shape[0 if a_turned else 1]), max(b_step, b.shape[0 if b_turned else 1])
    # BLAS reads matrices column by column, and so sees Cᵀ = Bᵀ Aᵀ.
    sizes = c.shape[1], c.shape[0], a.shape[1], b_step, a_step, c.strides[0] // c.itemsize
    _gemm(gemm, b_turned, a_turned, sizes, factor, b.ctypes.data, a.ctypes.data, kept, c.ctypes.data)


@intrinsic
def _gemm(typingctx, gemm, b_turned, a_turned, sizes, factor, b, a, kept, c):
    """The call of BLAS, which takes everything by its address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        gemm, b_turned, a_turned, sizes, factor, b, a, kept, c = args
        byte, word, number = ir.IntType(8), ir.IntType(32), kept.type

        def held(value: Any) -> Any:
            return alloca_once_value(builder, value)

        def letter(turned: Any) -> Any:
            no, yes = (ir.Constant(byte, ord(x)) for x in "NT")
            return held(builder.select(builder.trunc(turned, ir.IntType(1)), yes, no))

        def numbers(address: Any) -> Any:
            return builder.inttoptr(address, number.as_pointer())

        n, m, k, b_step, a_step, c_step = (
            held(builder.trunc(builder.extract_value(sizes, place), word)) for place in range(6)
        )
        first = letter(b_turned), letter(a_turned), n, m, k, held(factor)
        rest = numbers(b), b_step, numbers(a), a_step, held(kept), numbers(c), c_step
        kind = ir.FunctionType(ir.VoidType(), [x.type for x in (*first, *rest)])
        builder.call(builder.inttoptr(gemm, kind.as_pointer()), [*first, *rest])
        return context.get_dummy_value()

    return types.none(gemm, b_turned, a_turned, sizes, factor, b, a, kept, c), generate
