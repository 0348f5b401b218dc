"""Sequential position encodings: positions written as digits and read by a small Transformer."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.errors import InputError, unknown
from lengthwise.ops.bias import Bias, Product
from lengthwise.positions.position import Hook, Position
from lengthwise.positions.seqpe_encoder import DigitEncoder
from lengthwise.positions.seqpe_table import Encodings, Objective, Table

USES: dict[str, tuple[Hook, ...]] = {
    "attn_scalar": ("bias",),
    "input_add": ("embed",),
    "attn_mul": ("rotate",),
    "attn_add": ("rotate",),
}
"""How encodings enter a model, and the hook of each."""


class SeqPE(Position):
    """Positions read as strings of decimal digits by a small Transformer, whose last output is e(n) (`DigitEncoder`).

        attn_scalar   (u_n, w_n) = W e(n) + b, one W for all layers       b_ij = s u_i · w_j / √D in each head
        attn_mul      (u_n, w_n) = W e(n) + b, a W in each layer          q_i ← q_i ⊙ u_i      k_j ← k_j ⊙ w_j
        attn_add      the same                                            q_i ← q_i + u_i      k_j ← k_j + w_j
        input_add     x_i ← x_i + e(i)

    Any number that can be written can be read, whatever length was trained. Beside the task it is trained by the two
    losses of `seqpe_losses`, which it leaves as `auxiliary` in training; and with probability `shift` a pass in
    training has its positions begin at random elsewhere, one start for all rows (the released code draws one for each
    group of rows), on which the transfer loss isn't computed. Shifts need a model that begins passes; in training a
    sequence that goes on from a state whose keys were multiplied or added to may find them shifted otherwise.

    heads: the number of query heads of the attention that it serves. kv_heads: of keys, for attn_mul and attn_add.
    head_dim: D, dim / heads by default. use: one of the four. width: of the encoder, whose published form is as wide as
    the model; e is as wide as the encoder, or as the model for input_add. blocks: how many it has. positions: P, how
    many can be told apart on each axis. grid: the sizes of all axes but the first, for tokens laid out in more than one
    dimension and read row by row: 8 for pictures with rows of 8, [4, 8] for films of such pictures with 4 rows each.
    strength: s. dropout: in the encoder. contrast, transfer, shift, trained, samples, choices, reduction: see
    `Objective`; the published language models have 0.1, 0.1 and 0.1, 16 samples and 32 choices.
    W begins as N(0, 0.02), b as 0, and as 1 for attn_mul, so that queries and keys begin as they are.

    The table of a window costs a small Transformer over its distinct strings of digits, once for a pass, whatever the
    batch (`Encodings`). Nothing is kept in a cache but the positions of its keys; decoding reads rows of the table.
    Positions below 0, which are those of keys that nobody sees, count as 0.

    Raises InputError without heads, for heads that aren't the attention's or don't divide the width, an unknown use,
    positions from P on, and fractions of positions. Li et al. 2025, arXiv 2506.13277.
    """

    hooks: ClassVar[tuple[Hook, ...]] = ()

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        use: str = "attn_scalar",
        width: int = 64,
        blocks: int = 2,
        positions: int = 20_000,
        grid: int | list[int] | None = None,
        strength: float = 1.0,
        dropout: float = 0.0,
        contrast: float = 0.1,
        transfer: float = 0.1,
        shift: float = 0.1,
        trained: int | None = None,
        samples: int = 16,
        choices: int = 32,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        heads = 1 if heads is None and use == "input_add" else heads
        if heads is None:
            raise InputError("seqpe divides its encodings among the query heads: give their number, as seqpe(heads=4)")
        if use not in USES:
            raise unknown("use", use, USES)
        sides = () if grid is None else (grid,) if isinstance(grid, int) else tuple(grid)
        if min(sides, default=1) < 1 or max(sides, default=1) > positions:
            raise InputError(f"sides of the grid must be from 1 to positions={positions}, got {list(sides)}")
        outputs = dim if use == "input_add" else width
        head_dim = dim // max(heads, 1) if head_dim is None else head_dim
        kv_heads = heads if kv_heads is None else kv_heads
        for name, size in {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}.items():
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        if use != "input_add" and outputs % heads:
            raise InputError(f"width must be a multiple of heads, got width={width} and heads={heads}")
        self.hooks = USES[use]  # type: ignore[misc]
        self.per_layer = use in ("attn_mul", "attn_add")
        self.use, self.heads, self.kv_heads, self.head_dim, self.strength = use, heads, kv_heads, head_dim, strength
        self.read = self._map(outputs)
        parts = heads if outputs % heads == 0 else 1
        goal = Objective(contrast, transfer, shift, trained, samples, choices, parts, reduction)
        encoder = DigitEncoder(
            outputs, width=width, blocks=blocks, positions=positions, axes=1 + len(sides), dropout=dropout
        )
        self.encodings = Encodings(encoder, goal, sides, () if self.read is None or self.per_layer else (self.read,))

    def _map(self, outputs: int) -> nn.Linear | None:
        """W and b of this use."""
        if self.use == "input_add":
            return None
        targets = (self.heads + self.kv_heads) * self.head_dim if self.per_layer else 2 * outputs
        read = nn.Linear(outputs, targets)
        nn.init.normal_(read.weight, std=0.02)
        nn.init.constant_(read.bias, 1.0 if self.use == "attn_mul" else 0.0)
        return read

    def for_layer(self) -> Position:
        """For attn_mul and attn_add the same encodings with a map of the layer's own."""
        if not self.per_layer:
            return self
        own = object.__new__(type(self))
        nn.Module.__init__(own)
        for name in ("hooks", "per_layer", "use", "heads", "kv_heads", "head_dim", "strength"):
            setattr(own, name, getattr(self, name))
        own.read, own.encodings = own._map(self.encodings.encoder.head.out_features), self.encodings
        return own

    def begin_pass(self, training: bool) -> None:  # noqa: ARG002
        """A table of its own for each pass."""
        self.encodings.begin_pass()

    def embed(
        self, x: Float[Tensor, "batch length dim"], positions: Num[Tensor, "... length"]
    ) -> Float[Tensor, "batch length dim"]:
        """The embeddings plus the encodings of their positions, where they are used so."""
        return x + self.rows(positions).to(x.dtype) if self.use == "input_add" else x

    def require(self, head_dim: int) -> None:
        """Raises InputError for heads of another width than it was made for."""
        if self.per_layer and head_dim != self.head_dim:
            raise InputError(
                f"seqpe was made for heads of width {self.head_dim}, the attention has {head_dim}; write seqpe("
                f"head_dim={head_dim})"
            )

    def rotate(
        self,
        q: Float[Tensor, "batch queries heads head_dim"],
        k: Float[Tensor, "batch keys kv_heads head_dim"],
        q_positions: Num[Tensor, "... queries"],
        k_positions: Num[Tensor, "... keys"],
    ) -> tuple[Float[Tensor, "batch queries heads head_dim"], Float[Tensor, "batch keys kv_heads head_dim"]]:
        """Queries and keys multiplied by their encodings, or with them added."""
        if not self.per_layer or self.read is None:
            return q, k
        if (q.shape[2], k.shape[2]) != (self.heads, self.kv_heads):
            raise InputError(
                f"seqpe has encodings for {self.heads} heads of queries and {self.kv_heads} of keys, the attention has "
                f"{q.shape[2]} and {k.shape[2]}; write seqpe(heads={q.shape[2]}, kv_heads={k.shape[2]})"
            )
        e = self.rows(q_positions)
        of_keys = e if k_positions is q_positions else self.rows(k_positions)
        cut = self.heads * self.head_dim
        weights, offsets = (t.tensor_split([cut]) for t in (self.read.weight, self.read.bias))
        u, w = (
            functional.linear(rows, weight, offset).unflatten(-1, (-1, self.head_dim)).to(x.dtype)
            for rows, weight, offset, x in zip((e, of_keys), weights, offsets, (q, k), strict=True)
        )
        return (q * u, k * w) if self.use == "attn_mul" else (q + u, k + w)

    def bias(
        self,
        q_positions: Num[Tensor, "... queries"],
        k_positions: Num[Tensor, "... keys"],
        heads: int,
        sums: tuple[Tensor, Tensor] | None = None,  # noqa: ARG002
    ) -> Product | None:
        """u_i · w_j of every head, in float32 or wider."""
        if self.use != "attn_scalar":
            return None
        if heads != self.heads:
            raise InputError(
                f"seqpe has encodings for {self.heads} heads, the attention has {heads}; write seqpe(heads={heads})"
            )
        of_queries, of_keys = placed(q_positions), placed(k_positions)
        if torch.compiler.is_compiling():
            u, w = (self.halves(self.encodings.each(p))[n] for n, p in enumerate((of_queries, of_keys)))
            return Product(u.transpose(1, 2), w.transpose(1, 2))
        spans = span(of_queries), span(of_keys)
        bounds = [s if s is not None else outer(p) for s, p in zip(spans, (of_queries, of_keys), strict=True)]
        table = self.encodings.covering(min(low for low, _ in bounds), max(high for _, high in bounds))
        u, w = (self.part(table, n, p, s) for n, (p, s) in enumerate(zip((of_queries, of_keys), spans, strict=True)))
        return Product(u, w)

    def last_bias(
        self, keys: int, heads: int, device: torch.device, sums: tuple[Tensor, Tensor] | None = None
    ) -> Bias | None:
        """The same, without a look at where the places lie."""
        if self.use != "attn_scalar" or heads != self.heads or torch.compiler.is_compiling():
            return super().last_bias(keys, heads, device, sums)
        table = self.encodings.covering(0, keys)
        return Product(self.view(table, 0, keys - 1, keys), self.view(table, 1, 0, keys))

    def rows(self, positions: Num[Tensor, "... length"]) -> Float[Tensor, "rows length outputs"]:
        """e of every position."""
        places = placed(positions)
        if torch.compiler.is_compiling():
            return self.encodings.each(places)
        found = span(places)
        low, high = outer(places) if found is None else found
        table = self.encodings.covering(low, high)
        if found is not None:
            return table.e[None, low - table.first : high - table.first]
        return functional.embedding(places - table.first, table.e)

    def halves(self, e: Float[Tensor, "*shape outputs"]) -> tuple[Tensor, Tensor]:
        """u s/√D and w of every head, [*shape, heads, channels], in float32 or wider."""
        assert self.read is not None
        mapped = self.read(e)
        u, w = mapped.to(torch.promote_types(mapped.dtype, torch.float32)).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        return u * (self.strength * self.head_dim**-0.5), w

    def part(
        self, table: Table, half: int, places: Int[Tensor, "rows length"], found: tuple[int, int] | None
    ) -> Float[Tensor, "rows heads length channels"]:
        """u or w at these places: a view of the table where they follow each other, as they do in one document."""
        if found is not None:
            return self.view(table, half, *found)
        both = table.once("both", lambda: [y.flatten(1) for y in self.halves(table.e)])
        rows = functional.embedding(places - table.first, both[half])
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def view(self, table: Table, half: int, low: int, high: int) -> Float[Tensor, "1 heads length channels"]:
        """u or w of the places from `low` up to `high`, which isn't among them: all of the table, or a view of it."""
        both = table.once("heads first", lambda: [y.transpose(0, 1).contiguous()[None] for y in self.halves(table.e)])
        whole = (low, high) == (table.first, table.end)
        return both[half] if whole else both[half][:, :, low - table.first : high - table.first]

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"use={self.use}, heads={self.heads}, head_dim={self.head_dim}, grid={list(self.encodings.grid)}"


def placed(positions: Num[Tensor, "... length"]) -> Int[Tensor, "rows length"]:
    """Positions as [rows, length] whole numbers from 0 on. Raises InputError for fractions."""
    if positions.is_floating_point():
        raise InputError("seqpe reads whole numbers, got fractions; rope and sinusoidal take fractions")
    positions = positions.expand(1, -1) if positions.ndim == 1 else positions
    return positions.long().clamp_min(0)


def span(places: Int[Tensor, "rows length"]) -> tuple[int, int] | None:
    """The first place and the one after the last, where they are the same in all rows and follow each other."""
    if len(places) != 1 or not places.shape[1]:
        return None
    low = int(places[0, 0])
    high = low + places.shape[1]
    return (low, high) if torch.equal(places[0], torch.arange(low, high, device=places.device)) else None


def outer(places: Int[Tensor, "rows length"]) -> tuple[int, int]:
    """The least place and the one after the largest, 0 and 1 where there is none."""
    if not places.numel():
        return 0, 1
    low, high = (int(bound) for bound in places.aminmax())
    return low, high + 1
