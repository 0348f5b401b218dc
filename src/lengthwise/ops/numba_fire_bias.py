"""The kernels of FIRE's bias. A unit of work is one query of one row, with its keys of a tile.

Keys that follow each other are a run, in which the distance falls by one from key to key up to the query and rises
behind it; the keys of one piece are a range there, whose end is found without looking at the keys between.
"""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

import numpy as np
from numba import carray

from lengthwise.ops.numba_math import fused, kernel
from lengthwise.ops.numba_native import compiled, pointer, real, take
from lengthwise.ops.numba_vectors import dot


@kernel
def _runs(places, run_ends):
    """For each key, where the run that it is in ends."""
    keys = places.shape[0]
    for j in range(keys - 1, -1, -1):
        follows = j + 1 < keys and places[j + 1] == places[j] + 1
        run_ends[j] = run_ends[j + 1] if follows else j + 1


@kernel
def _ranges(place, places, run_ends, borders, range_ends, pieces):
    """The ranges of keys that are of one piece and one run, seen from a query: where each ends, and its piece. Gives
    their number."""
    keys, kinks, count, piece, j = places.shape[0], borders.shape[0], 0, 0, 0
    while j < keys:
        distance = abs(place - places[j])
        while piece < kinks and borders[piece] < distance:
            piece += 1
        while piece > 0 and borders[piece - 1] >= distance:
            piece -= 1
        end = run_ends[j]
        if places[j] <= place:
            nearest = np.int64(borders[piece - 1]) + 1 if piece > 0 else np.int64(0)
            end = min(end, j + distance - nearest + 1)
        elif piece < kinks:
            end = min(end, j + np.int64(borders[piece]) - distance + 1)
        range_ends[count] = end
        pieces[count] = piece
        count += 1
        j = end
    return count


@kernel
def _look_up(table, place, first, factor, out):
    """out_j = table(|place − first − j|) · factor, for a run of which no key is on the other side of the query."""
    fused()
    size = out.shape[0]
    if first <= place:
        begin = place - first - size + 1
        for j in range(size):
            out[j] = table[begin + size - 1 - j] * factor
    else:
        for j in range(size):
            out[j] = table[first - place + j] * factor


@kernel
def _look_up_all(table, place, places, range_ends, count, factor, out):
    begin = 0
    for n in range(count):
        end = range_ends[n]
        _look_up(table, place, places[begin], factor, out[begin:end])
        begin = end


@kernel
def _line(z, slope, offset, out):
    fused()
    for j in range(out.shape[0]):
        out[j] = slope * z[j] + offset


@kernel(entry=True)
def tile(q_places, k_places, psi, rate, borders, slopes, offsets, out, first, last):
    """Units `first` to `last` of rows times queries. Writes b.

    q_places, rate: [1 or rows, queries]. k_places: [1 or rows, keys]. psi: of each distance. borders: [1 or rows,
    queries, kinks]. slopes, offsets: [heads, pieces]. out: [rows, heads, queries, keys].
    """
    fused()
    heads, queries, keys = out.shape[1], out.shape[2], out.shape[3]
    run_ends, range_ends, pieces = np.empty(keys, np.int64), np.empty(keys, np.int64), np.empty(keys, np.int64)
    z = np.empty(keys, out.dtype)
    previous = -1
    for unit in range(first, last):
        row, i = unit // queries, unit % queries
        q_row, k_row = min(row, q_places.shape[0] - 1), min(row, k_places.shape[0] - 1)
        places, place = k_places[k_row], q_places[q_row, i]
        if row != previous:
            _runs(places, run_ends)
            previous = row
        count = _ranges(place, places, run_ends, borders[q_row, i], range_ends, pieces)
        _look_up_all(psi, place, places, range_ends, count, rate[q_row, i], z)
        for h in range(heads):
            begin = 0
            for n in range(count):
                end, piece = range_ends[n], pieces[n]
                _line(z[begin:end], slopes[h, piece], offsets[h, piece], out[row, h, i, begin:end])
                begin = end


@kernel(sums=True)
def _sums(d_s, z, slope, d_z):
    """Σ dS and Σ dS z; adds dS times the slope to dz."""
    fused()
    plain, weighted = z.dtype.type(0), z.dtype.type(0)
    for j in range(z.shape[0]):
        plain += d_s[j]
        weighted += d_s[j] * z[j]
        d_z[j] += d_s[j] * slope
    return plain, weighted


@kernel(entry=True)
def gradients(
    q_places,
    k_places,
    psi,
    growth,
    rate,
    borders,
    slopes,
    d_logits,
    d_c,
    d_rate,
    d_slopes,
    d_offsets,
    number,
    first,
    last,
):
    """Units `first` to `last`, as in `tile`: their part of the gradients, of which this is the one of this number.

    growth: dψ/dc of each distance. d_logits: [batch, heads, queries, keys], the batch being the rows or one for all.
    d_c: [parts]. d_rate: [rows, queries]. d_slopes, d_offsets: [parts, heads, pieces].
    """
    fused()
    rows, (batch, heads, queries, keys) = d_rate.shape[0], d_logits.shape
    run_ends, range_ends, pieces = np.empty(keys, np.int64), np.empty(keys, np.int64), np.empty(keys, np.int64)
    z, d_z, table = np.empty(keys, psi.dtype), np.empty(keys, psi.dtype), np.empty(keys, psi.dtype)
    one, previous = psi.dtype.type(1), -1
    for unit in range(first, last):
        row, i = unit // queries, unit % queries
        q_row, k_row = min(row, q_places.shape[0] - 1), min(row, k_places.shape[0] - 1)
        places, place, r = k_places[k_row], q_places[q_row, i], rate[q_row, i]
        if row != previous:
            _runs(places, run_ends)
            previous = row
        count = _ranges(place, places, run_ends, borders[q_row, i], range_ends, pieces)
        _look_up_all(psi, place, places, range_ends, count, r, z)
        d_z[:] = 0
        for b in range(row, row + 1) if rows > 1 else range(batch):
            for h in range(heads):
                begin = 0
                for n in range(count):
                    end, piece = range_ends[n], pieces[n]
                    plain, weighted = _sums(
                        d_logits[b, h, i, begin:end], z[begin:end], slopes[h, piece], d_z[begin:end]
                    )
                    d_offsets[number, h, piece] += plain
                    d_slopes[number, h, piece] += weighted
                    begin = end
        d_rate[row, i] = dot(d_z, z) / r
        _look_up_all(growth, place, places, range_ends, count, one, table)
        d_c[number] += dot(d_z, table) * r


@kernel
def _last_line(out, psi, slope, offset):
    """out_j = slope · psi + offset, psi read backwards."""
    fused()
    last = out.shape[0] - 1
    for j in range(out.shape[0]):
        out[j] = slope * psi[last - j] + offset


@kernel
def _last(given, number):
    """The bias of the last of keys that follow each other. given: taken, parts, keys, heads, kinks, the bits of r, and
    the addresses of ψ, A and B head by head, the kinks and the result."""
    parts, keys, heads, kinks, rate, zero = given[1], given[2], given[3], given[4], number(real(given[5])), number(0)
    psi, borders = carray(pointer(given[6], zero), keys), carray(pointer(given[9], zero), kinks)
    slopes = carray(pointer(given[7], zero), (heads, kinks + 1))
    offsets = carray(pointer(given[8], zero), (heads, kinks + 1))
    out = carray(pointer(given[10], zero), (heads, keys))
    while True:
        part = take(given)
        if part >= parts:
            break
        j, last, piece = keys * part // parts, keys * (part + 1) // parts, kinks
        while j < last:
            while piece > 0 and borders[piece - 1] >= psi[keys - 1 - j] * rate:
                piece -= 1
            end = last if piece == 0 else j + 1
            while end < last and borders[piece - 1] < psi[keys - 1 - end] * rate:
                end += 1
            for h in range(heads):
                _last_line(out[h, j:end], psi[keys - end : keys - j], slopes[h, piece] * rate, offsets[h, piece])
            j = end


@compiled
def last_float32(given):
    """`_last` in float32."""
    fused()
    _last(given, np.float32)


@compiled
def last_float64(given):
    """`_last` in float64."""
    fused()
    _last(given, np.float64)
