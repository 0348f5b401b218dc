"""What is added to the scaled logits of attention, known without being written out.

    S_ij = c q_i · k_j + b_ij

A bias is a value that gives b for any tile of queries and keys, and that passes the gradient of a tile's logits on to
the numbers it is made of. Attention by tiles therefore never holds more of it than a tile, forward or backward:

    Written        b is there already, as a tensor
    Difference     b_ij = f_i − g_j: running sums
    Relative       b_ij = t_{j − i}: a function of how far apart tokens are that follow each other
    OfDistance     b_ij = t(p_j − p_i): the same for tokens anywhere
    Product        b_ij = u_i · w_j: encodings of positions that meet in a product of their own

Every bias has the shape [rows, heads, queries, keys]: rows is 1 where all rows of the batch are alike, heads where all
heads are. A bias that is none of these is a class beside what needs it.

Several threads may call `tile` and `add_gradients` of one bias at once, each with gradients `into` of its own: neither
may change the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Num
from torch import Tensor

from lengthwise.ops.diagonals import diagonals

EVERY = slice(None)
"""All queries, or all keys."""


@dataclass(frozen=True)
class View:
    """How a tile of a bias lies in memory: b_ij = values[offset + indices · strides] + levels_i.

    values: all in one row. strides: of rows, heads, queries and keys, 0 where one serves all; that of queries may be
    negative, that of keys is 0 or 1. levels: [rows or 1, heads or 1, queries], or None for nothing.
    """

    values: Float[Tensor, " numbers"]
    offset: int
    strides: tuple[int, int, int, int]
    levels: Float[Tensor, "rows heads queries"] | None = None

    @staticmethod
    def of(tile: Float[Tensor, "rows heads queries keys"], dtype: torch.dtype) -> View:
        """That of a tensor."""
        tile = tile.detach().to(dtype)
        strides = [0 if size == 1 else stride for size, stride in zip(tile.shape, tile.stride(), strict=True)]
        if strides[3] not in (0, 1):
            return View.of(tile.contiguous(), dtype)
        extent = sum((size - 1) * stride for size, stride in zip(tile.shape, strides, strict=True)) + 1
        b, h, i, j = strides
        return View(tile.as_strided((extent,), (1,)), 0, (b, h, i, j))


class Bias:
    """A bias on the logits. A subclass is a frozen dataclass; it names its `inputs` and writes `over` and `tile`."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Rows, heads, queries and keys; 1 where one serves all."""
        raise NotImplementedError

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What gradients are wanted of, with whatever graph is behind it."""
        raise NotImplementedError

    def over(self, inputs: Sequence[Tensor]) -> Bias:
        """The same bias made of other inputs."""
        raise NotImplementedError

    def tile(self, queries: slice, keys: slice) -> Float[Tensor, "rows heads queries keys"]:
        """b of some queries and keys, differentiable; a view where that is possible, of any strides."""
        raise NotImplementedError

    def view(self, queries: slice, keys: slice, dtype: torch.dtype) -> View:
        """The same tile as kernels read it, without a graph."""
        return View.of(self.tile(queries, keys), dtype)

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """U and W where the bias is U Wᵀ, [rows or 1, heads or 1, queries or keys, channels], which kernels multiply
        themselves; then they are its inputs."""
        return None

    def scaled(self, factor: float) -> Bias:
        """The bias times a number."""
        raise NotImplementedError

    def of_heads(self, heads: slice) -> Bias:
        """The bias of some of the heads."""
        raise NotImplementedError

    def written(self) -> Float[Tensor, "rows heads queries keys"]:
        """All of it, differentiable."""
        return self.tile(EVERY, EVERY)

    def add_gradients(
        self, into: Sequence[Tensor], d_logits: Float[Tensor, "batch heads queries keys"], queries: slice, keys: slice
    ) -> None:
        """Add to the gradients of the inputs what a tile's logits pass on. By automatic differentiation of the tile;
        a subclass that knows better writes its own."""
        inputs = [x.detach().requires_grad_() for x in self.inputs]
        with torch.enable_grad():
            tile = self.over(inputs).tile(queries, keys)
        parts = torch.autograd.grad(tile, inputs, d_logits.sum_to_size(tile.shape).to(tile.dtype), allow_unused=True)
        for total, part in zip(into, parts, strict=True):
            if part is not None:
                total += part


@dataclass(frozen=True)
class Written(Bias):
    """A bias that is there: [1 or batch, 1 or heads, 1 or queries, 1 or keys]."""

    values: Float[Tensor, "rows heads queries keys"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of the tensor."""
        rows, heads, queries, keys = self.values.shape
        return rows, heads, queries, keys

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensor."""
        return (self.values,)

    def over(self, inputs: Sequence[Tensor]) -> Written:
        """Another tensor."""
        return Written(inputs[0])

    def tile(self, queries: slice, keys: slice) -> Tensor:
        """The part for these queries and keys."""
        return place(self.values, queries, keys)

    def scaled(self, factor: float) -> Written:
        """The tensor times a number."""
        return Written(self.values * factor)

    def of_heads(self, heads: slice) -> Written:
        """The part of some heads."""
        return self if self.shape[1] == 1 else Written(self.values[:, heads])

    def add_gradients(self, into: Sequence[Tensor], d_logits: Tensor, queries: slice, keys: slice) -> None:
        """The gradient of the logits, summed over what one number serves."""
        part = place(into[0], queries, keys)
        part += d_logits.sum_to_size(part.shape)


@dataclass(frozen=True)
class Difference(Bias):
    """b_ij = f_i − g_j.

    f: [1 or batch, 1 or heads, queries]. g: [1 or batch, 1 or heads, keys], of the same heads. The difference is taken
    in their own dtype, float64 for sums that grow large, and given in float32 or that of the logits.
    """

    f: Float[Tensor, "_ heads queries"]
    g: Float[Tensor, "_ heads keys"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Rows, heads, queries and keys."""
        return max(len(self.f), len(self.g)), self.f.shape[1], self.f.shape[2], self.g.shape[2]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """f and g."""
        return self.f, self.g

    def over(self, inputs: Sequence[Tensor]) -> Difference:
        """Other f and g."""
        return Difference(*inputs)

    def tile(self, queries: slice, keys: slice) -> Tensor:
        """The differences of these queries and keys."""
        return self.f[:, :, queries, None] - self.g[:, :, None, keys]

    def view(self, queries: slice, keys: slice, dtype: torch.dtype) -> View:
        """A number for each key, and one for each query, both from the first key on, since sums may be large."""
        f, g = self.f[:, :, queries].detach(), self.g[:, :, keys].detach()
        rows = View.of((g[:, :, :1] - g)[:, :, None], dtype)
        return replace(rows, levels=(f - g[:, :, :1]).to(dtype))

    def scaled(self, factor: float) -> Difference:
        """Both times a number."""
        return Difference(self.f * factor, self.g * factor)

    def of_heads(self, heads: slice) -> Difference:
        """Those of some heads."""
        return self if self.f.shape[1] == 1 else Difference(self.f[:, heads], self.g[:, heads])

    def add_gradients(self, into: Sequence[Tensor], d_logits: Tensor, queries: slice, keys: slice) -> None:
        """Sums over keys, and minus the sums over queries."""
        d_f, d_g = into[0][:, :, queries], into[1][:, :, keys]
        d_f += d_logits.sum(3).sum_to_size(d_f.shape)
        d_g -= d_logits.sum(2).sum_to_size(d_g.shape)


@dataclass(frozen=True)
class Relative(Bias):
    """b_ij = t_{j − i} for queries and keys that follow each other.

    table: t, [heads, queries + keys − 1], from the distance of the last query to the first key on; so
    b_ij = table[j − i + queries − 1], i and j counted from the first query and the first key.
    """

    table: Float[Tensor, "heads span"]
    queries: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """One row, heads, queries and keys."""
        return 1, len(self.table), self.queries, self.table.shape[1] - self.queries + 1

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The table."""
        return (self.table,)

    def over(self, inputs: Sequence[Tensor]) -> Relative:
        """Another table."""
        return Relative(inputs[0], self.queries)

    def tile(self, queries: slice, keys: slice) -> Tensor:
        """A view of the table: each row one place before the row above it."""
        rows, columns = range(self.queries)[queries], range(self.shape[3])[keys]
        begin = columns.start - (rows.stop - 1) + self.queries - 1
        windows = self.table[:, begin : begin + len(rows) + len(columns) - 1].unfold(1, len(columns), 1)
        return windows.flip(1)[None]

    def view(self, queries: slice, keys: slice, dtype: torch.dtype) -> View:
        """The table itself, read one place earlier from row to row."""
        rows, columns = range(self.queries)[queries], range(self.shape[3])[keys]
        table = self.table.detach().to(dtype).contiguous()
        offset = columns.start - rows.start + self.queries - 1
        return View(table.view(-1), offset, (0, 0 if len(table) == 1 else table.shape[1], -1, 1))

    def add_gradients(self, into: Sequence[Tensor], d_logits: Tensor, queries: slice, keys: slice) -> None:
        """Sums along the diagonals."""
        rows, columns = range(self.queries)[queries], range(self.shape[3])[keys]
        begin = columns.start - (rows.stop - 1) + self.queries - 1
        part = into[0][:, begin : begin + len(rows) + len(columns) - 1]
        part += diagonals(d_logits.to(part.dtype), len(part))

    def scaled(self, factor: float) -> Relative:
        """The table times a number."""
        return replace(self, table=self.table * factor)

    def of_heads(self, heads: slice) -> Relative:
        """The table of some heads."""
        return self if len(self.table) == 1 else replace(self, table=self.table[heads])


@dataclass(frozen=True)
class OfDistance(Bias):
    """b_ij = t(p_j − p_i) for tokens at any positions, computed tile by tile.

    of: t, a function of distances [rows, queries, keys] and of the parameters that gives [rows, heads, queries, keys].
    q_positions, k_positions: [1 or batch, queries], [1 or batch, keys]. heads: how many t gives.
    """

    of: Callable[..., Tensor]
    q_positions: Num[Tensor, "_ queries"]
    k_positions: Num[Tensor, "_ keys"]
    heads: int
    parameters: tuple[Tensor, ...] = ()
    chosen: range | None = None
    factor: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Rows, heads, queries and keys."""
        rows = max(len(self.q_positions), len(self.k_positions))
        heads = self.heads if self.chosen is None else len(self.chosen)
        return rows, heads, self.q_positions.shape[1], self.k_positions.shape[1]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The parameters."""
        return self.parameters

    def over(self, inputs: Sequence[Tensor]) -> OfDistance:
        """Other parameters."""
        return replace(self, parameters=tuple(inputs))

    def tile(self, queries: slice, keys: slice) -> Tensor:
        """t of the distances of these queries and keys."""
        apart = self.k_positions[:, None, keys] - self.q_positions[:, queries, None]
        b = self.of(apart, *self.parameters)
        b = b if self.chosen is None else b[:, self.chosen.start : self.chosen.stop]
        return b if self.factor == 1 else b * self.factor

    def scaled(self, factor: float) -> OfDistance:
        """The function times a number."""
        return replace(self, factor=self.factor * factor)

    def of_heads(self, heads: slice) -> OfDistance:
        """The function of some heads."""
        return replace(self, chosen=(range(self.heads) if self.chosen is None else self.chosen)[heads])


@dataclass(frozen=True)
class Product(Bias):
    """b_ij = u_i · w_j.

    u: [1 or batch, 1 or heads, queries, channels]. w: [1 or batch, 1 or heads, keys, channels], of the same heads.
    """

    u: Float[Tensor, "_ heads queries channels"]
    w: Float[Tensor, "_ heads keys channels"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Rows, heads, queries and keys."""
        return max(len(self.u), len(self.w)), self.u.shape[1], self.u.shape[2], self.w.shape[2]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """u and w."""
        return self.u, self.w

    def over(self, inputs: Sequence[Tensor]) -> Product:
        """Other u and w."""
        return Product(*inputs)

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """u and w."""
        return self.u, self.w

    def tile(self, queries: slice, keys: slice) -> Tensor:
        """The products of these queries and keys."""
        return self.u[:, :, queries] @ self.w[:, :, keys].mT

    def scaled(self, factor: float) -> Product:
        """u times a number."""
        return Product(self.u * factor, self.w)

    def of_heads(self, heads: slice) -> Product:
        """Those of some heads."""
        return self if self.u.shape[1] == 1 else Product(self.u[:, heads], self.w[:, heads])

    def add_gradients(self, into: Sequence[Tensor], d_logits: Tensor, queries: slice, keys: slice) -> None:
        """dU = dS W, dW = dSᵀ U."""
        u, w = self.u[:, :, queries].detach(), self.w[:, :, keys].detach()
        d_b = d_logits.sum_to_size(max(len(u), len(w)), u.shape[1], *d_logits.shape[2:]).to(u.dtype)
        d_u, d_w = into[0][:, :, queries], into[1][:, :, keys]
        d_u += (d_b @ w).sum_to_size(d_u.shape)
        d_w += (d_b.mT @ u).sum_to_size(d_w.shape)


def relative(
    of: Callable[..., Tensor],
    q_positions: Num[Tensor, "... queries"],
    k_positions: Num[Tensor, "... keys"],
    heads: int,
    parameters: tuple[Tensor, ...] = (),
) -> Bias:
    """b_ij = t(p_j − p_i) in the cheapest form that the positions allow. See `OfDistance` for the arguments."""
    q_positions, k_positions = (p.expand(1, -1) if p.ndim == 1 else p for p in (q_positions, k_positions))
    if not (follow(q_positions) and follow(k_positions)):
        return OfDistance(of, q_positions, k_positions, heads, parameters)
    apart = k_positions[0, 0] - q_positions[0, -1]
    span = torch.arange(q_positions.shape[1] + k_positions.shape[1] - 1, device=apart.device) + apart
    return Relative(of(span[None, None], *parameters)[0, :, 0], q_positions.shape[1])


def follow(positions: Num[Tensor, "rows length"]) -> bool:
    """Whether the positions, the same in all rows, follow each other."""
    if len(positions) != 1 or positions.is_floating_point() or not positions.shape[1]:
        return False
    return torch.compiler.is_compiling() is False and bool((positions.diff(dim=1) == 1).all())


def place(values: Tensor, queries: slice, keys: slice) -> Tensor:
    """The part of a tensor for some queries and keys, where a dimension of 1 serves all."""
    if values.shape[2] > 1:
        values = values[:, :, queries]
    return values[..., keys] if values.shape[3] > 1 else values
