"""What a log decay g does inside a chunk, for matrix-state recurrences in chunked form.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_tᵀ

Between a key at j and a query at i ≥ j lies the factor exp(g_{j+1} + … + g_i). A chunk needs four weights:

    within   between a key and a query of the chunk         exp(g_{j+1} + … + g_i), 0 for j > i
    enter    from the state before the chunk to a query     exp(g_1 + … + g_i)
    leave    from a key to the state after the chunk        exp(g_{j+1} + … + g_C)
    carry    from the state before to the state after       exp(g_1 + … + g_C)

A token that starts a document has g = −∞: nothing from before reaches it. For g ≤ 0 no exponent anywhere is positive,
so nothing overflows, however strong the decay. Tensors are chunks, [chunks, rows, chunk, dim].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

FORGOTTEN = -800.0
"""A log decay under which nothing is left, in float64 as in float32: exp(-800) is 0 in both."""

Chunks = Float[Tensor, "chunks rows chunk dim"]
Scores = Float[Tensor, "chunks rows chunk chunk"]


class HeadDecay(NamedTuple):
    """Weights of one decay per head, or of none: then only the order of tokens weighs, and all fields are None."""

    within: Tensor | None = None
    enter: Tensor | None = None
    leave: Tensor | None = None
    carry: Tensor | None = None

    @classmethod
    def of(cls, decay: Chunks, rows: int, dtype: torch.dtype) -> HeadDecay:
        """From log decays [chunks, rows, chunk, 1], clamped at `FORGOTTEN`; one row may stand for several.

        Differences of cumulative sums are taken in float64: a strong decay would otherwise cost the digits of the
        weak ones that follow it.
        """
        total = decay.to(torch.float64).clamp(min=FORGOTTEN).cumsum(-2)
        between = (total - total.mT).to(dtype)
        future = torch.ones(between.shape[-2:], dtype=torch.bool, device=decay.device).triu_(1)
        last = total[..., -1:, :]
        weights = (between.masked_fill(future, -torch.inf), total.to(dtype), (last - total).to(dtype), last.to(dtype))
        return cls(*(w.exp().repeat_interleave(rows // decay.shape[1], 1) for w in weights))

    def mask(self, scores: Scores) -> Scores:
        """Scores, weighted in place."""
        return scores.tril_() if self.within is None else scores.mul_(self.within)

    def scores(self, q: Chunks, k: Chunks) -> Scores:
        """A_ij = within_ij · q_i · k_j"""
        return self.mask(q @ transposed(k))

    def scores_backward(self, grad: Scores, q: Chunks, k: Chunks) -> tuple[Chunks, Chunks]:
        """Gradients of q and k, given that of the scores, which is used up."""
        grad = self.mask(grad)
        return grad @ k, grad.mT @ q


class ChannelDecay(NamedTuple):
    """Weights of one decay per key channel. The scores don't factor into q and k with exponents of one sign, so they
    are built by halves: with m the border between the halves of a block,

        A_ij = Σ_c q_ic exp(g_{m+1} + … + g_i)_c · k_jc exp(g_{j+1} + … + g_m)_c       j ≤ m < i

    for blocks of 2, 4, 8, … tokens. Each factor's exponent is a plain sum of log decays, without any cancellation.
    """

    decay: Tensor
    enter: Tensor
    leave: Tensor
    carry: Tensor

    @classmethod
    def of(cls, decay: Chunks) -> ChannelDecay:
        """From log decays [chunks, rows, chunk, key_dim], the chunk a power of two."""
        prefix, suffix = list(halves(decay))[-1][1:]
        return cls(decay, prefix.exp(), suffix.exp(), prefix[..., -1:, :].mT.exp())

    def scores(self, q: Chunks, k: Chunks) -> Scores:
        """A_ij = Σ_c q_ic k_jc exp(g_{j+1} + … + g_i)_c for j ≤ i, else 0."""
        chunk = q.shape[-2]
        scores = q.new_zeros(*q.shape[:-1], chunk)
        scores.diagonal(dim1=-2, dim2=-1).copy_((q * k).sum(-1))
        for size, prefix, suffix in halves(self.decay):
            if size < chunk:
                late, early = second(q, size) * second(prefix, size).exp(), first(k, size) * first(suffix, size).exp()
                corner(scores, size).copy_(late @ early.mT)
        return scores

    def scores_backward(self, grad: Scores, q: Chunks, k: Chunks) -> tuple[Chunks, Chunks]:
        """Gradients of q and k, given that of the scores."""
        on_itself = grad.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        grad_q, grad_k = on_itself * k, on_itself * q
        for size, prefix, suffix in halves(self.decay):
            if size < q.shape[-2]:
                after, before = second(prefix, size).exp(), first(suffix, size).exp()
                block = corner(grad, size)
                second(grad_q, size).addcmul_(after, block @ (first(k, size) * before))
                first(grad_k, size).addcmul_(before, block.mT @ (second(q, size) * after))
        return grad_q, grad_k


def halves(decay: Chunks) -> Iterator[tuple[int, Chunks, Chunks]]:
    """For blocks of 1, 2, 4, … tokens up to the chunk: the sums of log decays inside a token's block up to and with the
    token (prefix), and after it (suffix)."""
    size, prefix, suffix = 1, decay, torch.zeros_like(decay)
    while True:
        yield size, prefix, suffix
        if size == decay.shape[-2]:
            return
        left, right = first(prefix, size), second(prefix, size)
        prefix = torch.cat([left, right + left[..., -1:, :]], dim=-2).flatten(-3, -2)
        suffix = torch.cat([first(suffix, size) + right[..., -1:, :], second(suffix, size)], dim=-2).flatten(-3, -2)
        size *= 2


def first(x: Tensor, size: int) -> Tensor:
    """The first halves of the blocks of 2·size tokens: [..., blocks, size, dim], a view."""
    return x.unflatten(-2, (-1, 2 * size))[..., :size, :]


def second(x: Tensor, size: int) -> Tensor:
    """The second halves of the blocks of 2·size tokens: [..., blocks, size, dim], a view."""
    return x.unflatten(-2, (-1, 2 * size))[..., size:, :]


def corner(scores: Tensor, size: int) -> Tensor:
    """Of each block of 2·size tokens on the diagonal, queries of its second half and keys of its first:
    [..., blocks, size, size], a view."""
    blocks = scores.unflatten(-1, (-1, 2 * size)).unflatten(-3, (-1, 2 * size))
    return blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)[..., size:, :size]


def weighted(x: Tensor, weight: Tensor | None) -> Tensor:
    """x times a weight; x itself where there is none."""
    return x if weight is None else x * weight


def transposed(x: Tensor) -> Tensor:
    """xᵀ in memory: small products with a transposed right side run at half the rate on the processor."""
    return x.mT.contiguous() if x.device.type == "cpu" else x.mT
