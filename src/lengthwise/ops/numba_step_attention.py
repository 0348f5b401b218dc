"""The fused kernels of attention with one query in each row."""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np
from numba import carray

from lengthwise.ops.numba_math import exp, fused, kernel
from lengthwise.ops.numba_native import compiled, pointer, real, take
from lengthwise.ops.numba_softmax import absorb, scale
from lengthwise.ops.numba_vectors import add_scaled, dot

BLOCK = 64
"""Keys that are read before their values: few enough for the values of a key to lie near in memory."""


@kernel
def _finish(s, factor, slope, level, b):
    """s ← factor s + (slope b + level)."""
    fused()
    for j in range(s.shape[0]):
        s[j] = factor * s[j] + (slope * b[j, 0] + level)


@kernel
def _score(s, q, k, steps, groups, width, zero):
    """s_hj = q_h · k_j of the keys of a block, in the order in which they lie, which the processor reads ahead in."""
    heads, count = s.shape
    for j in range(count):
        for h in range(heads // groups):
            row = carray(pointer(k + j * steps[0] + h * steps[1], zero), width)
            for g in range(h * groups, (h + 1) * groups):
                s[g, j] = dot(q[g], row)


@kernel
def _read(o, p, v, steps, groups, width, zero):
    """o_h ← o_h + Σ_j p_hj v_j."""
    heads, count = p.shape
    for j in range(count):
        for h in range(heads // groups):
            row = carray(pointer(v + j * steps[0] + h * steps[1], zero), width)
            for g in range(h * groups, (h + 1) * groups):
                add_scaled(o[g], p[g, j], row)


@kernel
def _attend(given, b, first, last, o, total, top, number):
    """o, and the total and largest of the weights, of all heads of row b over the keys from `first` up to `last`."""
    heads, groups, width, more, zero = given[5], given[5] // given[6], given[7], given[8], number(0)
    factor, slope, nothing = number(real(given[9])), number(real(given[23])), number(-np.inf)
    k, k_steps = given[13] + b * given[14], (given[15], given[16])
    v, v_steps = given[17] + b * given[18], (given[19], given[20])
    q, s = np.empty((heads, width), number), np.empty((heads, BLOCK), number)
    for h in range(heads):
        q[h] = carray(pointer(given[10] + b * given[11] + h * given[12], zero), width)
        o[h] = zero
        total[h], top[h] = zero, nothing
    for begin in range(first, last, BLOCK):
        count = min(BLOCK, last - begin)
        block = s.reshape(s.size)[: heads * count].reshape(heads, count)
        _score(block, q, k + begin * k_steps[0], k_steps, groups, width, zero)
        for h in range(heads):
            row = block[h]
            if given[21] == 0:
                scale(row, factor)
            else:
                level = zero
                if given[22] != 0:
                    level = carray(pointer(given[22] + b * given[27] + h * given[28], zero), 1)[0]
                added = carray(pointer(given[21] + b * given[24] + h * given[25], zero), (last, given[26]))
                _finish(row, factor, slope, level, added[begin : begin + count])
            absorb(row, total, top, o, h)
        _read(o, block, v + begin * v_steps[0], v_steps, groups, more, zero)


@kernel
def _step(given, number):
    """Attention of one query in each row.

    given: taken, threads, rows, parts of each row's keys, keys, heads of queries, heads of keys, their width, that of
    values, the bits of c; the address of q and its strides of rows and heads; of k and v, each with strides of rows,
    keys and heads; of the bias (0 for none) and of the levels, which are added to it (0 for none), the bits of what the
    bias is multiplied by, its strides of rows, heads and keys, those of levels of rows and heads; the addresses of y,
    and of room for what each part sums, and for its totals and largest logits. Strides count bytes, those of the keys
    of a bias count numbers.
    """
    rows, parts, keys, heads, more, zero = given[2], given[3], given[4], given[5], given[8], number(0)
    y = carray(pointer(given[29], zero), (rows, heads, more))
    units = rows * parts if parts > 1 else 0
    sums = carray(pointer(given[30], zero), (units, heads, more))
    levels = carray(pointer(given[31], zero), (units, 2, heads))
    alone = np.empty((2, heads), number)
    while True:
        unit = take(given)
        if unit >= rows * parts:
            break
        b, part = unit // parts, unit % parts
        first, last = keys * part // parts, keys * (part + 1) // parts
        if parts > 1:
            _attend(given, b, first, last, sums[unit], levels[unit, 0], levels[unit, 1], number)
        else:
            _attend(given, b, first, last, y[b], alone[0], alone[1], number)
            for h in range(heads):
                scale(y[b, h], number(1) / alone[0, h] if alone[0, h] > zero else zero)


@kernel
def _merge(given, number):
    """y from the sums of the parts, each brought to the level of the largest. given: as for `_step`."""
    rows, parts, heads, more, zero, nothing = given[2], given[3], given[5], given[8], number(0), number(-np.inf)
    y = carray(pointer(given[29], zero), (rows, heads, more))
    units = rows * parts
    sums = carray(pointer(given[30], zero), (units, heads, more))
    levels = carray(pointer(given[31], zero), (units, 2, heads))
    for b in range(rows):
        for h in range(heads):
            top, total = nothing, zero
            for unit in range(b * parts, (b + 1) * parts):
                top = max(top, levels[unit, 1, h])
            y[b, h] = zero
            if top == nothing:
                continue
            for unit in range(b * parts, (b + 1) * parts):
                if levels[unit, 1, h] > nothing:
                    weight = exp(levels[unit, 1, h] - top)
                    total += weight * levels[unit, 0, h]
                    add_scaled(y[b, h], weight, sums[unit, h])
            scale(y[b, h], number(1) / total)


@compiled
def step_float32(given):
    """`_step` in float32."""
    fused()
    _step(given, np.float32)


@compiled
def step_float64(given):
    """`_step` in float64."""
    fused()
    _step(given, np.float64)


@compiled
def merge_float32(given):
    """`_merge` in float32."""
    fused()
    _merge(given, np.float32)


@compiled
def merge_float64(given):
    """`_merge` in float64."""
    fused()
    _merge(given, np.float64)
