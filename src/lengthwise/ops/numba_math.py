"""Elementary functions for the fused kernels, written so that loops over them become vector instructions.

numba calls the C library once per number for `exp` and `log1p`, which keeps a loop scalar. In float32 these are
polynomials instead (relative error below 3e-7); float64 calls the C library, for exactness.
"""

# mypy: disable-error-code="call-arg"
# ruff: noqa: ARG001  (numba passes what an intrinsic may not need)

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

LOG2_E = 1 / math.log(2)
"""exp(x) = exp2(x log2(e))."""

LN_2 = math.log(2)

_EXACT = {"contract", "nsz"}
_SUMS = {"contract", "nsz", "reassoc"}
_MAXIMA = {"contract", "nsz", "nnan"}


def kernel(
    function: Callable[..., Any] | None = None, *, entry: bool = False, sums: bool = False, maxima: bool = False
) -> Any:
    """Decorator: compiled without Python's lock; fused multiply-adds are allowed.

    entry: called from Python, and kept on disk between runs; else inlined into the kernel that calls it.
    sums: sums may be reordered, so that one over channels is made of vectors. maxima: no number is taken to be NaN, so
    that a maximum is.
    """
    if function is None:
        return partial(kernel, entry=entry, sums=sums, maxima=maxima)
    plain = inspect.unwrap(function)  # the tests wrap every function of the package to check its annotations
    fastmath = _SUMS if sums else _MAXIMA if maxima else _EXACT
    return njit(nogil=True, error_model="numpy", fastmath=fastmath, cache=entry, forceinline=not entry)(plain)


@intrinsic
def fused(typingctx):
    """Called first in a kernel, promises LLVM that its array arguments don't overlap and asks for the widest vectors.

    Without the promise each inner loop begins by comparing the addresses of all its arrays. On AVX-512 LLVM avoids the
    widest vectors unless a function asks, which makes kernels that are all arithmetic twice as slow.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # llvmlite's own `add` knows no attribute that has a value.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        for argument in builder.function.args:
            if argument.name.startswith("arg.") and argument.name.endswith(".4"):  # the data of an array
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def _bits_of(typingctx, value):
    """The 32 bits of a float32 as an integer."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _float_of(typingctx, value):
    """The float32 that has the given 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


# A Python literal is float64 to numba and would take the whole expression with it, hence the named constants.
ONE, TWO = np.float32(1), np.float32(2)
_LOWEST, _HIGHEST = np.float32(-126), np.float32(127.49)
_ROUND, _SHIFT = np.float32(1.5 * 2**23), np.int32(23)
_LOG2_E = np.float32(LOG2_E)
_LN_2_HEAD = np.float32(0.693359375)  # 9 bits, so that its product with an exponent is exact
_LN_2_REST = np.float32(LN_2 - 0.693359375)
# 2^r for |r| <= 1/2. The first two terms are exact so that decays close to 1 keep their distance from 1.
_LN_2 = np.float32(LN_2)
_E2, _E3 = np.float32(0.24022647738456726), np.float32(0.05550362169742584)
_E4, _E5 = np.float32(0.009618526324629784), np.float32(0.0013390161329880357)
_E6 = np.float32(0.00015321154205594212)
# log(1 + y) = 2 s + s³ (...) with s = y / (2 + y), for y in [0, 1].
_L0, _L1 = np.float32(0.666664183139801), np.float32(0.4002152979373932)
_L2, _L3 = np.float32(0.2800176441669464), np.float32(0.2801220118999481)


@kernel
def _scaled_power(shifted, r):
    """2^(n + r), where `shifted` is the integer n plus 1.5 * 2^23, which leaves n in its low bits."""
    p = _E5 + r * _E6
    p = _E4 + r * p
    p = _E3 + r * p
    p = _E2 + r * p
    p = _LN_2 + r * p
    p = ONE + r * p
    return _float_of(_bits_of(p) + (_bits_of(shifted) << _SHIFT))


@kernel
def _exp2_float32(x):
    x = min(max(x, _LOWEST), _HIGHEST)
    shifted = x + _ROUND
    return _scaled_power(shifted, x - (shifted - _ROUND))


@kernel
def _exp_float32(x):
    x = min(max(x, _LOWEST * _LN_2), _HIGHEST * _LN_2)
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    return _scaled_power(shifted, (x - n * _LN_2_HEAD - n * _LN_2_REST) * _LOG2_E)


@kernel
def _log1p_float32(y):
    s = y / (TWO + y)
    q = s * s
    p = _L2 + q * _L3
    p = _L1 + q * p
    p = _L0 + q * p
    return s * (TWO + q * p)


def exp2(x):
    """2^x. In float32 results are kept between the smallest normal number and the largest one."""
    return 2.0**x


def exp(x):
    """e^x. In float32 results are kept between the smallest normal number and the largest one."""
    return math.exp(x)


def log1p(y):
    """log(1 + y) for y in [0, 1]."""
    return math.log1p(y)


def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1 / (1 + math.exp(-x))


@overload(exp2, inline="always")
def _exp2(x):
    if x == types.float32:
        return lambda x: _exp2_float32(x)
    return lambda x: math.exp(x * LN_2)


@overload(exp, inline="always")
def _exp(x):
    if x == types.float32:
        return lambda x: _exp_float32(x)
    return lambda x: math.exp(x)


@overload(log1p, inline="always")
def _log1p(y):
    if y == types.float32:
        return lambda y: _log1p_float32(y)
    return lambda y: math.log1p(y)


@overload(sigmoid, inline="always")
def _sigmoid(x):
    if x == types.float32:
        return lambda x: ONE / (ONE + _exp_float32(-x))
    return lambda x: 1.0 / (1.0 + math.exp(-x))
