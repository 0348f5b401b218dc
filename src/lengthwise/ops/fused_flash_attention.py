"""The tiles of `flash_attention` on the processor: one kernel for each tile, with its matrix products and all between.

Each thread takes tiles of queries of its own, so that threads never wait for each other before the end: those that see
much and little in turn, always the same ones, and so the same sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lengthwise.ops import fused
from lengthwise.ops.bias import View

if TYPE_CHECKING:
    from lengthwise.ops.flash_attention import Tiling

Rows = Sequence[tuple[slice, list[tuple[slice, bool]]]]


def fits(x: Tensor) -> bool:
    """Whether the kernels can take it: on the processor, where PyTorch's library shows its matrix product."""
    return x.is_cpu and fused.gemm(x.dtype) is not None


def forward(tiling: Tiling, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """O, [batch · kv_heads, groups, queries, value_dim], and LSE of the same with 1."""
    o = values.new_zeros(*q.shape[:3], values.shape[2])
    total, highest = o.new_zeros(o.shape[:3]), o.new_full(o.shape[:3], -torch.inf)
    given = _by_unit(q), *fused.arrays(keys, values), *map(_by_unit, (o, total, highest))
    factors = tuple(fused.arrays(*_factors(tiling, q)))

    def work(rows: Rows, number: int) -> None:  # noqa: ARG001
        scores = q.new_empty(tiling.frame.tiles.area).numpy()
        for own, tiles in rows:
            for near, hides in tiles:
                tile = Tile(tiling, own, near, hides, q)
                tile.kernels.forward(*tile.first, *given, *tile.matrices(scores, 1), *tile.rest, factors)

    divide(work, tiling, q)
    lse = highest.add_(total.log()).unsqueeze(-1)
    return o.div_(total.masked_fill_(total == 0, 1).unsqueeze(-1)), lse


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
    d_q = torch.zeros_like(q)
    lse, delta = level.squeeze(-1), delta.squeeze(-1)
    given = _by_unit(q), *fused.arrays(keys, values), *map(_by_unit, (d_o, lse, delta, d_q))
    product, factors = tiling.bias is not None and tiling.bias.factors is not None, _factors(tiling, q)
    shared = [keys, values, *(factors if d_inputs else _factors(None, q))]
    arrays = tuple(fused.arrays(*factors))
    found: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def work(rows: Rows, number: int) -> None:
        # The first share adds to what was given; which thread takes it doesn't matter.
        sums, into = [torch.zeros_like(x) for x in shared], [torch.zeros_like(d) if number else d for d in d_inputs]
        found[number] = sums, into
        d_k, d_v, *d_factors = fused.arrays(*sums)
        fixed = *given, d_k, d_v, tuple(d_factors)
        area, wanted = tiling.frame.tiles.area, q.shape[0] * q.shape[1] if into and not product else 0
        rooms, whole = q.new_empty(2 * area).numpy(), q.new_empty(wanted * area).numpy()
        for own, tiles in rows:
            for near, hides in tiles:
                tile = Tile(tiling, own, near, hides, q)
                d_s, both = tile.matrices(whole, wanted), tile.matrices(rooms, 2)
                tile.kernels.backward(*tile.first, *fixed, *both, d_s, *tile.rest, arrays)
                if wanted and tiling.bias is not None:
                    by_head = torch.from_numpy(d_s).unflatten(0, (tiling.batch, -1))
                    tiling.bias.add_gradients(into, by_head, own, near)

    divide(work, tiling, q)
    (sums, into), *others = (found[number] for number in sorted(found))
    for more in others:
        for total, part in zip((*sums, *into), (*more[0], *more[1]), strict=True):
            total += part
    if product:
        for total, part in zip(d_inputs, sums[2:], strict=False):
            total += part
    return d_q, sums[0], sums[1]


def divide(work: Callable[[Rows, int], None], tiling: Tiling, q: Tensor) -> None:
    """All tiles of queries, among the threads: `work` is called with each share and its number."""
    rows = sorted(tiling.frame.tiles.rows, key=lambda row: len(row[1]))
    size = tiling.frame.tiles.count * tiling.frame.tiles.area * q.shape[0] * q.shape[1]
    count = len(fused.parts(len(rows), size))
    # Dealt forth and back, since the tiles of a causal pattern see one tile of keys more from row to row.
    shares = [rows[n :: 2 * count] + rows[2 * count - 1 - n :: 2 * count] for n in range(count)]
    inference = torch.is_inference_mode_enabled()

    def one(share: Rows, number: int) -> None:
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            work(share, number)

    fused.run([partial(one, share, number) for number, share in enumerate(shares)])


class Tile:
    """One tile as the kernels take it: its place, what is added to its logits, and what is hidden."""

    def __init__(self, tiling: Tiling, rows: slice, columns: slice, hides: bool, like: Tensor) -> None:
        nothing, bias = _nothing(like.dtype), tiling.bias
        view = View(nothing.view(-1), 0, (0, 0, 0, 0))
        if bias is not None and bias.factors is None:
            view = bias.view(rows, columns, like.dtype)
        levels = nothing if view.levels is None else view.levels.to(like.dtype)
        seen = tiling.frame.tiles.seen(rows, columns, hides)
        mask = _NO_MASK if seen.mask is None else seen.mask
        values, levels, mask, blocks = fused.arrays(view.values, levels, mask, seen.blocks)
        place, heads = (rows.start, columns.start), like.shape[0] * like.shape[1] // tiling.batch
        self.shape = rows.stop - rows.start, columns.stop - columns.start
        self.rest = place, heads, blocks, (values, view.offset, view.strides, levels, mask)
        self.first = fused.gemm(like.dtype), values.dtype.type(tiling.scale)
        self.kernels: Any = import_module("lengthwise.ops.numba_flash_attention")

    def matrices(self, room: Any, count: int) -> Any:
        """The beginning of an array as so many matrices of the tile's size."""
        height, width = self.shape
        return room[: count * height * width].reshape(count, height, width)


_NO_MASK = torch.empty(0, 0, 0, dtype=torch.bool)


@cache
def _nothing(dtype: torch.dtype) -> Tensor:
    """No bias, and no levels of one."""
    return torch.empty(0, 0, 0, dtype=dtype)


def _factors(tiling: Tiling | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """U and W of a bias that is their product, and empty ones of any other."""
    factors = None if tiling is None or tiling.bias is None else tiling.bias.factors
    u, w = (like.new_empty(0, 0, 0, 0),) * 2 if factors is None else factors
    return u.detach().to(like.dtype).contiguous(), w.detach().to(like.dtype).contiguous()


def _by_unit(x: Tensor) -> Any:
    """[units, groups, …], contiguous, as an array with a head in each row."""
    return x.flatten(0, 1).numpy()
