"""The tiles of `flash_attention` on the processor: matrix products, and one fused pass between them.

Each thread takes tiles of queries of its own, so that threads never wait for each other before the end: those that see
much and little in turn, always the same ones, and so the same sums. A tile of keys is gone through a few heads at a
time, as many as leave its logits in the second-level cache; what a bias adds is computed once for all heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lengthwise.ops import fused
from lengthwise.ops.bias import View

if TYPE_CHECKING:
    from lengthwise.ops.flash_attention import Tiling

TILE = 2**17
"""Logits that are gone through at once: half a MiB in float32."""

Rows = Sequence[tuple[slice, list[tuple[slice, bool]]]]


def forward(tiling: Tiling, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """O, [batch · kv_heads, groups, queries, value_dim], and LSE of the same with 1. q carries the scale."""
    o = values.new_zeros(*q.shape[:3], values.shape[2])
    lse = o.new_empty(*o.shape[:3], 1)

    def work(rows: Rows, number: int) -> None:  # noqa: ARG001
        for own, tiles in rows:
            part, level = _accumulate(tiling, q[:, :, own].flatten(1, 2), keys, values, own, tiles)
            o[:, :, own], lse[:, :, own] = part.view_as(o[:, :, own]), level.view_as(lse[:, :, own])

    divide(work, tiling, q)
    return o, lse


def backward(
    tiling: Tiling,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    d_o: Tensor,
    level: Tensor,
    delta: Tensor,
    d_inputs: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, keys and values. level: LSE, ∞ where nothing is seen. d_inputs: of the bias, are added to."""
    d_q = torch.empty_like(q)
    found: dict[int, tuple[Tensor, Tensor, list[Tensor]]] = {}

    def work(rows: Rows, number: int) -> None:
        # The first share adds to what was given; which thread takes it doesn't matter.
        own = [torch.zeros_like(d) if number else d for d in d_inputs]
        sums = found[number] = torch.zeros_like(keys), torch.zeros_like(values), own
        for place, tiles in rows:
            near = [x[:, :, place].flatten(1, 2).contiguous() for x in (q, d_o, level, delta)]
            d_q[:, :, place] = _gradients(tiling, near, keys, values, place, tiles, sums).view_as(d_q[:, :, place])

    divide(work, tiling, q)
    (d_k, d_v, into), *others = (found[number] for number in sorted(found))
    for more_k, more_v, more in others:
        d_k += more_k
        d_v += more_v
        for total, part in zip(into, more, strict=True):
            total += part
    return d_q, d_k, d_v


def divide(work: Callable[[Rows, int], None], tiling: Tiling, q: Tensor) -> None:
    """All tiles of queries, among the threads: `work` is called with each share and its number."""
    rows = sorted(tiling.rows(), key=lambda row: len(row[1]))
    size = sum(len(tiles) for _, tiles in rows) * tiling.height * tiling.width * q.shape[0] * q.shape[1]
    count = len(fused.parts(len(rows), size))
    # Dealt forth and back, since the tiles of a causal pattern see one tile of keys more from row to row.
    shares = [rows[n :: 2 * count] + rows[2 * count - 1 - n :: 2 * count] for n in range(count)]
    inference = torch.is_inference_mode_enabled()

    def one(share: Rows, number: int) -> None:
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            work(share, number)

    fused.run([partial(one, share, number) for number, share in enumerate(shares)])


class Added:
    """What is added to one tile of logits, and hidden from it, as the kernels take it."""

    def __init__(self, tiling: Tiling, rows: slice, columns: slice, masked: bool, like: Tensor) -> None:
        nothing = like.new_empty(0)
        view = View(nothing, 0, (0, 0, 0, 0)) if tiling.bias is None else tiling.bias.view(rows, columns, like.dtype)
        levels = like.new_empty(0, 0, 0) if view.levels is None else view.levels.to(like.dtype)
        mask = tiling.visibility.mask(rows, columns) if masked else torch.empty(0, 0, 0, dtype=torch.bool)
        self.levels, self.mask, self.values = fused.arrays(levels, mask, view.values)
        self.offset, self.strides = view.offset, view.strides
        self.kernels: Any = import_module("lengthwise.ops.numba_flash_attention")

    @property
    def arguments(self) -> tuple[Any, ...]:
        """In the order of the kernels."""
        return self.values, self.offset, self.strides, self.levels, self.mask


def _chunks(count: int, each: int) -> list[slice]:
    step = max(1, TILE // max(each, 1))
    return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]


def _by_head(x: Tensor, groups: int) -> Any:
    """[units, groups · queries, …] as an array with a head in each row."""
    return x.view(x.shape[0] * groups, -1, *x.shape[2:]).numpy()


def _accumulate(
    tiling: Tiling, q: Tensor, keys: Tensor, values: Tensor, rows: slice, tiles: list[tuple[slice, bool]]
) -> tuple[Tensor, Tensor]:
    """O and LSE of one tile of queries, over the tiles of keys in turn."""
    units, height = q.shape[:2]
    groups, heads = tiling.groups, units // tiling.batch * tiling.groups
    o = q.new_zeros(units, height, values.shape[2])
    total, highest = q.new_zeros(units, height), q.new_full((units, height), -torch.inf)
    for columns, masked in tiles:
        added = Added(tiling, rows, columns, masked, q)
        for own in _chunks(units, height * (columns.stop - columns.start)):
            p = torch.bmm(q[own], keys[own, columns].mT)
            sums = (_by_head(x[own], groups) for x in (highest, total, o))
            added.kernels.weigh(_by_head(p, groups), *added.arguments, *sums, heads, own.start * groups)
            o[own].baddbmm_(p, values[own, columns])
    lse = highest.add_(total.log())
    return o.div_(total.masked_fill_(total == 0, 1).unsqueeze(-1)), lse


def _gradients(
    tiling: Tiling,
    near: list[Tensor],
    keys: Tensor,
    values: Tensor,
    rows: slice,
    tiles: list[tuple[slice, bool]],
    sums: tuple[Tensor, Tensor, list[Tensor]],
) -> Tensor:
    """dQ of one tile of queries; what it adds to dK, dV and the gradients of the bias is added to `sums`."""
    q, d_o, level, delta = near
    d_k, d_v, d_inputs = sums
    units, height = q.shape[:2]
    groups, heads = tiling.groups, units // tiling.batch * tiling.groups
    d_q = torch.zeros_like(q)
    for columns, masked in tiles:
        width = columns.stop - columns.start
        added = Added(tiling, rows, columns, masked, q)
        whole = q.new_empty(units, height, width) if d_inputs else None
        for own in _chunks(units, height * width):
            p = torch.bmm(q[own], keys[own, columns].mT)
            d_s = p.new_empty(p.shape) if whole is None else whole[own]
            torch.bmm(d_o[own], values[own, columns].mT, out=d_s)
            given = (_by_head(x[own, :, 0], groups) for x in (level, delta))
            first = own.start * groups
            added.kernels.grade(_by_head(p, groups), _by_head(d_s, groups), *added.arguments, *given, heads, first)
            d_v[own, columns].baddbmm_(p.mT, d_o[own])
            d_q[own].baddbmm_(d_s, keys[own, columns])
            d_k[own, columns].baddbmm_(d_s.mT, q[own])
        if whole is not None and tiling.bias is not None:
            tiling.bias.add_gradients(d_inputs, whole.view(tiling.batch, -1, height // groups, width), rows, columns)
    return d_q
