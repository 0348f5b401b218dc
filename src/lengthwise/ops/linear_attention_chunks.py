"""What linear attention computes for a span of chunks, with one decay per head, with none, and with one per channel.

    written = (leave ∘ K)ᵀ V            what a chunk adds to the state after it
    O = (within ∘ Q Kᵀ) V + (enter ∘ Q) S

with the weights of `chunk_decay`. q, k: [chunks, rows, chunk, key_dim], a row for each group of heads that share them;
v, o: [chunks, rows, chunk, heads · value_dim], the heads of a group side by side; S: [chunks, rows, key_dim,
heads · value_dim]. What a group shares is one matrix product for all its heads: a decay per head weighs the values, and
only Q Kᵀ takes a copy for each head, once weighted.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.ops import fused
from lengthwise.ops.chunk_decay import FORGOTTEN, ChannelDecay, transposed, weighted
from lengthwise.ops.chunks import split

Keys = Float[Tensor, "chunks rows chunk key_dim"]
Values = Float[Tensor, "chunks rows chunk values"]
States = Float[Tensor, "chunks rows key_dim values"]
Scores = Float[Tensor, "chunks rows chunk chunk"]
HeadScores = Float[Tensor, "chunks rows decays chunk chunk"]


class Gradients(NamedTuple):
    """Of the inputs of a span; `moved` is that of the sums of log decays from the beginning up to each token."""

    q: Tensor
    k: Tensor
    v: Tensor
    moved: Tensor | None


class HeadSpan(NamedTuple):
    """One decay per head, or per row of the batch, or none.

    total: sums of log decays from the beginning of the chunk, [chunks, rows, decays, chunk] in float64; None without.
    enter, leave: [chunks, rows, chunk, decays, 1]. carry: [chunks, rows, 1, decays, 1].
    kernels: whether the fused kernels weigh the scores.
    """

    total: Tensor | None = None
    enter: Tensor | None = None
    leave: Tensor | None = None
    carry: Tensor | None = None
    kernels: bool = False

    @classmethod
    def of(cls, decay: Values, groups: int, dtype: torch.dtype, kernels: bool) -> HeadSpan:
        """From log decays [chunks, batch, chunk, heads] or [chunks, batch, chunk, 1].

        Differences of sums are taken in float64: a strong decay would otherwise cost the digits of the weak ones that
        follow it.
        """
        total = decay.to(torch.float64).clamp(min=FORGOTTEN).cumsum(-2)
        if total.shape[-1] == 1:
            total = total.repeat_interleave(groups, 1)
        else:
            total = total.unflatten(-1, (groups, -1)).movedim(-2, 2).flatten(1, 2)
        last = total[..., -1:, :]
        enter, leave, carry = (w.to(dtype).exp().unsqueeze(-1) for w in (total, last - total, last))
        return cls(total.mT.contiguous(), enter, leave, carry, kernels)

    def written(self, k: Keys, v: Values) -> States:
        """Kᵀ (leave ∘ V)"""
        return k.mT @ self.by_head(v, self.leave)

    def carried(self, state: Tensor, n: int) -> Tensor:
        """The state before chunk n of the span, as far as it lasts to its end."""
        return state if self.carry is None else self.by_head(state, self.carry[n])

    def outputs(self, q: Keys, k: Keys, v: Values, states: States) -> Values:
        """O, given the states before the chunks."""
        inside = self.spread(q @ transposed(k)) @ self.apart(v)
        across = q @ states
        if self.enter is None:
            return across.add_(inside.squeeze(2))
        return torch.addcmul(inside.transpose(2, 3), across.unflatten(-1, (inside.shape[2], -1)), self.enter).flatten(3)

    def read(self, q: Keys, grad: Values) -> States:
        """Gradient of the states before the chunks that comes from their outputs."""
        return q.mT @ self.by_head(grad, self.enter)

    def gradients(
        self, given: tuple[Keys, Keys, Values, Values], grad: Values, states: Tensor, grad_after: States
    ) -> Gradients:
        """From the gradients of the outputs and of the states after the chunks. given: q, k, v and the outputs.

        With G the sum of log decays from the beginning, v_t leaves as v_t exp(−G_t) and o_t enters as exp(G_t), so that
        ∂/∂G_t = o_t · ∂/∂o_t − v_t · ∂/∂v_t for each head, plus S · ∂/∂S where the chunk ends.
        """
        q, k, v, o = given
        grad_apart = self.apart(grad)
        scores, grad_raw = self.gather(grad_apart @ transposed(self.apart(v)), q @ transposed(k))
        inside = (scores.mT @ grad_apart).transpose(2, 3)
        across = k @ grad_after
        grad_q = grad_raw @ k + self.by_head(grad, self.enter) @ transposed(states[:-1])
        grad_k = grad_raw.mT @ q + self.by_head(v, self.leave) @ transposed(grad_after)
        if self.leave is None:
            return Gradients(grad_q, grad_k, across.add_(inside.squeeze(3)), None)
        decays = self.leave.shape[-2]
        grad_v = torch.addcmul(inside, across.unflatten(-1, (decays, -1)), self.leave).flatten(3)
        moved = torch.addcmul(grad * o, v, grad_v, value=-1).unflatten(-1, (decays, -1)).sum(-1)
        moved[..., -1, :] += (grad_after * states[1:]).sum(-2).unflatten(-1, (decays, -1)).sum(-1)
        return Gradients(grad_q, grad_k, grad_v, moved)

    def by_head(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """[..., heads · value_dim] with the decays' weights [..., decays, 1]."""
        return x if weight is None else (x.unflatten(-1, (weight.shape[-2], -1)) * weight).flatten(-2)

    def apart(self, x: Values) -> Float[Tensor, "chunks rows decays chunk values_of_one"]:
        """The heads of each decay in a matrix of their own; one matrix for all where there is no decay."""
        decays = 1 if self.total is None else self.total.shape[2]
        return x.unflatten(-1, (decays, -1)).transpose(2, 3).contiguous()

    def spread(self, raw: Scores) -> HeadScores:
        """within ∘ Q Kᵀ for each decay."""
        if self.total is None:
            return raw.tril_().unsqueeze(2)
        if not self.kernels:
            return self.within(raw.dtype) * raw.unsqueeze(2)
        scores = raw.new_empty(*self.total.shape, raw.shape[-1])
        run("spread", self.total, raw, scores)
        return scores

    def gather(self, grad: HeadScores, raw: Scores) -> tuple[HeadScores, Scores]:
        """The weighted scores, and the gradient of those before the weights, given that of the weighted ones, which is
        used up."""
        if self.total is None:
            return raw.tril_().unsqueeze(2), grad.squeeze(2).tril_()
        if not self.kernels:
            within = self.within(raw.dtype)
            return within * raw.unsqueeze(2), (grad * within).sum(2)
        grad_raw = torch.empty_like(raw)
        run("gather", self.total, raw, grad, grad_raw)
        return grad, grad_raw

    def within(self, dtype: torch.dtype) -> HeadScores:
        """exp(total_i − total_j) for j ≤ i, else 0."""
        assert self.total is not None
        between = (self.total.unsqueeze(-1) - self.total.unsqueeze(-2)).to(dtype)
        future = torch.ones(between.shape[-2:], dtype=torch.bool, device=between.device).triu_(1)
        return between.masked_fill(future, -torch.inf).exp()


def run(name: str, total: Tensor, *tensors: Tensor) -> None:
    """A fused kernel over all chunks and rows of a span."""
    kernels: Any = import_module("lengthwise.ops.numba_chunk_decay")
    chunks, chunk = total.shape[0] * total.shape[1], total.shape[-1]
    given = fused.arrays(*(t.flatten(0, 1) for t in (total, *tensors)))
    ranges = fused.parts(chunks * ((chunk + 1) // 2), total.numel() * chunk)
    fused.run([partial(getattr(kernels, name), *given, *r) for r in ranges])


class ChannelSpan(NamedTuple):
    """One decay per key channel. Queries and keys are each head's own: a group is one head."""

    decay: ChannelDecay

    @classmethod
    def of(cls, decay: Keys) -> ChannelSpan:
        """From log decays [chunks, rows, chunk, key_dim], the chunk a power of two."""
        return cls(ChannelDecay.of(decay))

    def written(self, k: Keys, v: Values) -> States:
        """(leave ∘ K)ᵀ V"""
        return weighted(k, self.decay.leave).mT @ v

    def carried(self, state: Tensor, n: int) -> Tensor:
        """The state before chunk n of the span, as far as it lasts to its end."""
        return state * self.decay.carry[n]

    def outputs(self, q: Keys, k: Keys, v: Values, states: States) -> Values:
        """O, given the states before the chunks."""
        out = self.decay.scores(q, k) @ v
        out += weighted(q, self.decay.enter) @ states
        return out

    def read(self, q: Keys, grad: Values) -> States:
        """Gradient of the states before the chunks that comes from their outputs."""
        return weighted(q, self.decay.enter).mT @ grad

    def gradients(
        self, given: tuple[Keys, Keys, Values, Values], grad: Values, states: Tensor, grad_after: States
    ) -> Gradients:
        """From the gradients of the outputs and of the states after the chunks. given: q, k, v and the outputs.

        With G the sum of log decays from the beginning, q enters only as q exp(G) and k only as k exp(−G), so that
        ∂/∂G_t = q_t ∂/∂q_t − k_t ∂/∂k_t, plus S ∂/∂S where the chunk ends.
        """
        q, k, v, _ = given
        w = self.decay
        grad_v = w.scores(q, k).mT @ grad
        grad_v += weighted(k, w.leave) @ grad_after
        grad_q, grad_k = w.scores_backward(grad @ transposed(v), q, k)
        grad_q += weighted(grad @ transposed(states[:-1]), w.enter)
        grad_k += weighted(v @ transposed(grad_after), w.leave)
        moved = grad_q * q - grad_k * k
        moved[..., -1, :] += (grad_after * states[1:]).sum(-1)
        return Gradients(grad_q, grad_k, grad_v, moved)


def span_of(
    decay: Tensor | None, begin: int, end: int, chunk: int, groups: int, dtype: torch.dtype, kernels: bool
) -> HeadSpan | ChannelSpan:
    """The span of the chunks from `begin` to `end`."""
    if decay is None:
        return HeadSpan()
    if decay.ndim == 4:
        return ChannelSpan.of(split(decay, begin, end, chunk, dtype))
    per_token = split(decay.unsqueeze(2), begin, end, chunk, torch.float64)
    return HeadSpan.of(per_token, groups, dtype, kernels)
