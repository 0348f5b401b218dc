"""The forms of Combiner that read both ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lengthwise.ops.combiner import Tokens, others, running, summarise
from lengthwise.ops.combiner_views import Columns, Rows, Stretch, filled
from lengthwise.ops.joint_attention import Call, Keys, Part, joint_attention


def fixed_both_ways(q: Tokens, k: Tokens, v: Tokens, size: int) -> Tokens:
    """The form fixed without causality: each token reads its segment, and summaries of all others."""
    length = q.shape[1]
    full = length // size * size
    cuts = [cut for cut in (Stretch(0, full, size) if full else None, Stretch(full) if full < length else None) if cut]
    if not cuts:
        return torch.zeros_like(v)
    found = [summarise(*(cut(x).flatten(0, 1) for x in (q, k, v))) for cut in cuts]
    key, value = (torch.cat([x.unflatten(0, (len(q), -1)) for x in both], 1) for both in zip(*found, strict=True))
    parts = [Part(cut, (Keys(0, cut),)) for cut in cuts]
    if key.shape[1] > 1:
        own = torch.arange(length, device=q.device)[:, None] // size
        mask = own != torch.arange(key.shape[1], device=q.device)
        parts.append(Part(Stretch(), (Keys(1, Stretch(), mask=mask[None, None]),)))
    return joint_attention(q, [(k, v), (key, value)], parts, first=len(cuts))


def mixture_both_ways(q: Tokens, k: Tokens, v: Tokens, size: int) -> Tokens:
    """The form mixture without causality: each token reads its row and its column, and of all other rows and columns
    what is above, below, to the left and to the right of it."""
    length = q.shape[1]
    rows = -(-length // size)
    if rows < 2:
        return fixed_both_ways(q, k, v, size)
    table = Table(size, rows, length - (rows - 1) * size)
    queries, keys, values = (filled(x, size) for x in (q, k, v))
    call = Call([(keys, values)], table.rows_and_columns(q.device))
    if size > 1:
        table.above_and_below(call, queries, keys, values)
        table.left_and_right(call, queries, keys, values)
    return joint_attention(queries, call.pairs, call.parts, first=2)[:, :length]


@dataclass(frozen=True)
class Table:
    """Rows of `size` tokens, of which the last has only `rest`."""

    size: int
    rows: int
    rest: int

    def rows_and_columns(self, device: torch.device) -> list[Part]:
        """Own rows, which come first, and own columns but for the token itself."""
        size, full, rest = self.size, self.rows - 1, self.rest
        last = Rows(size, (full, None))
        parts = [
            Part(Rows(size, (0, full)), (Keys(0, Rows(size, (0, full))),)),
            Part(last, (Keys(0, Rows(size, (full, None), (0, rest))),)),
        ]
        for columns, seen in (((0, rest), self.rows), ((rest, size), full)):
            if columns[0] < columns[1]:
                mask = others(self.rows, seen, device)
                parts.append(
                    Part(Columns(size, columns=columns), (Keys(0, Columns(size, (0, seen), columns), mask=mask),))
                )
        return parts

    def above_and_below(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Summaries of what is above and below a row in each other column."""
        size, full = self.size, self.rows - 1
        mask = others(size, size, q.device)
        down = self.column_wise(q, k, v, (0, full), (0, size))
        call.add(Rows(size, (1, None)), (x.transpose(1, 2) for x in down), mask)
        up = self.column_wise(q, k, v, (1, self.rows), (0, self.rest), backwards=True)
        if self.rest == size:
            call.add(Rows(size, (0, full)), (x.transpose(1, 2) for x in up), mask)
            return
        call.add(Rows(size, (full - 1, full)), (x[:, :, -1:].transpose(1, 2) for x in up), mask[..., : self.rest])
        if full > 1:
            beyond = self.column_wise(q, k, v, (1, full), (self.rest, size), backwards=True)
            both = (torch.cat([x[:, :, :-1], y], 1).transpose(1, 2) for x, y in zip(up, beyond, strict=True))
            call.add(Rows(size, (0, full - 1)), both, mask)

    def column_wise(
        self, q: Tensor, k: Tensor, v: Tensor, rows: tuple[int, int], columns: tuple[int, int], backwards: bool = False
    ) -> list[Tensor]:
        """k̄ and v̄ of some columns up to, or from, each of some rows, [batch, columns, rows, …]."""
        view = Columns(self.size, rows, columns)
        given = [view(x) for x in (q, k, v)]
        flat = [x.flatten(0, 1).flip(1) if backwards else x.flatten(0, 1) for x in given]
        found = running(flat[0], flat[1], flat[2])
        return [(x.flip(1) if backwards else x).unflatten(0, given[0].shape[:2]) for x in found]

    def left_and_right(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Summaries of what is to the left and to the right of a column in each other row."""
        size, full, rest = self.size, self.rows - 1, self.rest
        left, right = self.row_wise(q, k, v), self.row_wise(q, k, v, backwards=True)
        mask = others(self.rows, self.rows, q.device)
        call.add(Columns(size, columns=(1, None)), left, mask)
        for columns, seen in (((0, rest - 1), self.rows), ((max(rest - 1, 0), size - 1), full)):
            if columns[0] < columns[1]:
                some = (x[:, slice(*columns), :seen] for x in right)
                call.add(Columns(size, columns=columns), some, mask[..., :seen])

    def row_wise(self, q: Tensor, k: Tensor, v: Tensor, backwards: bool = False) -> list[Tensor]:
        """k̄ and v̄ of what is left of each place but the first, or right of each but the last, [batch, size − 1, rows,
        …]. Where the last row has nothing to the right of a place, anything."""
        full = self.rows - 1
        found = []
        for view in (Rows(self.size, (0, full)), Rows(self.size, (full, None), (0, self.rest))):
            given = [view(x) for x in (q, k, v)]
            flat = [x.flatten(0, 1).flip(1) if backwards else x.flatten(0, 1) for x in given]
            sums = running(flat[0], flat[1], flat[2])
            found.append([(x.flip(1) if backwards else x).unflatten(0, given[0].shape[:2]) for x in sums])
        # Beyond its end, the last row has all of its tokens to the left.
        place = torch.arange(self.size - 1, device=q.device)
        index = (place + 1 if backwards else place).clamp_max(self.rest - 1)
        return [
            torch.cat([whole[:, :, 1:] if backwards else whole[:, :, :-1], last[:, :, index]], 1).transpose(1, 2)
            for whole, last in zip(*found, strict=True)
        ]
