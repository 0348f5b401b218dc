"""A sequence as a few important tokens and the means of blocks of the others, from which every token can be restored.

    c̄_t = Σ_{i in block t} c_i / (n_t + ε)          Δ_i = c̄_t − c_i          so that c_i = c̄_t − Δ_i

over the n_t tokens of a block. Some blocks are then worked on token by token, the others as their mean, and both are
taken back:

    fine      c̄'_t from the new tokens of the block, and their Δ'            a token becomes what it was made
    coarse    c̄'_t is the new mean, Δ stays                                  every token moves as far as its mean

Zeng et al. 2023, arXiv 2305.04241.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Order:
    """Where the tokens of rows are put: the marked ones first, the others after them, each in their order.

    index: the token at each place, [rows, places + blocks · block]. there: whether one stands there.
    marked: whether the token at each of the first places is a marked one. block: tokens of a block.
    """

    index: Int[Tensor, "rows spots"]
    there: Bool[Tensor, "rows spots"]
    marked: Bool[Tensor, "rows places"]
    block: int

    @staticmethod
    def of(valid: Bool[Tensor, "rows length"], marked: Bool[Tensor, "rows length"], places: int, block: int) -> Order:
        """The order of rows of which some tokens aren't there; those come last."""
        length = valid.shape[1]
        rank = torch.where(valid, (~marked).long(), 2)
        missing = places - length if length < places else -(length - places) % block
        index = F.pad(rank.argsort(dim=1, stable=True), (0, missing))
        there = F.pad(valid.gather(1, index[:, :length]), (0, missing))
        return Order(index, there, there[:, :places] & marked.gather(1, index[:, :places]), block)

    @property
    def places(self) -> int:
        """How many places there are for important tokens."""
        return self.marked.shape[1]

    @property
    def blocks(self) -> int:
        """How many blocks the others make."""
        return (self.index.shape[1] - self.places) // self.block

    def take(self, values: Tensor) -> Tensor:
        """Values of each token, [rows, length, …], in this order."""
        index = self.index.view(*self.index.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
        return values.gather(1, index)

    def put_back(
        self, values: Float[Tensor, "rows spots dim"], otherwise: Float[Tensor, "rows length dim"]
    ) -> Float[Tensor, "rows length dim"]:
        """What stands at the places, in the tokens' own order; `otherwise` for tokens that aren't there."""
        length = otherwise.shape[1]
        own = self.index[:, :length].argsort(dim=1)[..., None]  # each of the first `length` places has its own token
        back = values[:, :length].gather(1, own.expand(-1, -1, values.shape[2]))
        return torch.where(self.there[:, :length].gather(1, own[..., 0])[..., None], back, otherwise)


@dataclass(frozen=True)
class Blocks:
    """Tokens in compressed form.

    important: [rows, places, dim]. means: c̄, [rows, blocks, dim]. banks: Δ as it was at first, and of the blocks that
    were fine in each step since. table: for each block where its Δ is, counted through all banks; a step appends a bank
    and changes the table, and copies no Δ of a block that wasn't fine.
    """

    order: Order
    important: Float[Tensor, "rows places dim"]
    means: Float[Tensor, "rows blocks dim"]
    banks: tuple[Float[Tensor, "rows _ block dim"], ...]
    table: Int[Tensor, "rows blocks"]
    eps: float

    @staticmethod
    def of(x: Float[Tensor, "rows length dim"], order: Order, eps: float = 1e-4) -> Blocks:
        """The compressed form of tokens. eps: ε."""
        places = order.take(x).masked_fill(~order.there[..., None], 0)
        tokens = places[:, order.places :].unflatten(1, (order.blocks, order.block))
        table = torch.arange(order.blocks, device=x.device).expand(len(x), -1)
        there = order.there[:, order.places :].unflatten(1, (order.blocks, order.block))
        means, differences = compressed(tokens, there, eps)
        return Blocks(order, places[:, : order.places], means, (differences,), table, eps)

    @property
    def there(self) -> Bool[Tensor, "rows blocks block"]:
        """Where the tokens of each block are."""
        return self.order.there[:, self.order.places :].unflatten(1, (self.order.blocks, self.order.block))

    def fine(self, chosen: Int[Tensor, "rows fine"]) -> Float[Tensor, "rows fine block dim"]:
        """The tokens of some blocks."""
        where, first = self.table.gather(1, chosen), 0
        differences = None
        for bank in self.banks:
            at = (where - first).clamp(0, max(bank.shape[1] - 1, 0))
            found = taken(bank, at)
            here = (where >= first)[..., None, None]
            differences = found if differences is None else torch.where(here, found, differences)
            first += bank.shape[1]
        return taken(self.means, chosen)[:, :, None] - differences  # type: ignore[operator]  # there is a first bank

    def after(
        self,
        chosen: Int[Tensor, "rows fine"],
        tokens: Float[Tensor, "rows fine block dim"],
        others: Int[Tensor, "rows coarse"],
        means: Float[Tensor, "rows coarse dim"],
        important: Float[Tensor, "rows places dim"],
    ) -> Blocks:
        """With new tokens for the blocks that were fine, new means for the others, and new important tokens."""
        new, differences = compressed(tokens, taken(self.there, chosen), self.eps)
        back = torch.cat([chosen, others], 1).argsort(dim=1)
        number = sum(bank.shape[1] for bank in self.banks) + torch.arange(chosen.shape[1], device=chosen.device)
        return replace(
            self,
            important=important,
            means=taken(torch.cat([new, means], 1), back),
            banks=(*self.banks, differences),
            table=self.table.scatter(1, chosen, number.expand_as(chosen)),
        )

    def restored(self, otherwise: Float[Tensor, "rows length dim"]) -> Float[Tensor, "rows length dim"]:
        """Every token, in the order in which they came; `otherwise` where none was there."""
        differences = self.banks[0] if len(self.banks) == 1 else taken(torch.cat(self.banks, 1), self.table)
        tokens = self.means[:, :, None] - differences
        return self.order.put_back(torch.cat([self.important, tokens.flatten(1, 2)], 1), otherwise)


def taken(values: Tensor, index: Int[Tensor, "rows some"]) -> Tensor:
    """The entries of each row at these places, [rows, some, …]."""
    rows, count = values.shape[:2]
    if not values.numel() or not index.numel():
        return values.new_zeros(*index.shape, *values.shape[2:])
    flat = (index + count * torch.arange(rows, device=index.device)[:, None]).flatten()
    return values.flatten(0, 1).index_select(0, flat).unflatten(0, index.shape)


def compressed(
    tokens: Float[Tensor, "rows some block dim"], there: Bool[Tensor, "rows some block"], eps: float
) -> tuple[Float[Tensor, "rows some dim"], Float[Tensor, "rows some block dim"]]:
    """c̄ and Δ of some blocks."""
    weight = there[..., None].to(tokens.dtype)
    means = (tokens * weight).sum(2) / (weight.sum(2) + eps).clamp_min(torch.finfo(tokens.dtype).tiny)
    return means, means[:, :, None] - tokens
