"""How sharp the attention of a model is while it reads, measured by rows of queries, so that nothing is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lengthwise.mixers.attention import Attention
from lengthwise.ops.visibility import aligned

NUMBERS = 1 << 22
"""How many logits are looked at together."""


@dataclass(frozen=True)
class Statistics:
    """Means over queries: of the largest probability, of the entropy in nats, and of the variance of the logits."""

    max_prob: float
    entropy: float
    variance: float


class Totals:
    """Sums of the statistics of queries, of every head and layer."""

    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)
        self.queries = 0

    def add(
        self,
        logits: Float[Tensor, "batch heads queries keys"],
        seen: Bool[Tensor, "_ _ queries keys"],
        counted: Bool[Tensor, "_ queries"] | None = None,
    ) -> None:
        """The rows of some queries. seen: the keys that count. counted: the queries that do, all by default."""
        p = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        keys = seen.sum(-1, keepdim=True).clamp_min(1)
        mean = logits.where(seen, 0).sum(-1, keepdim=True) / keys
        variance = (logits - mean).square().where(seen, 0).sum(-1) / keys.squeeze(-1)
        each = torch.stack([p.amax(-1), torch.special.entr(p).sum(-1), variance])
        chosen = seen.any(-1) if counted is None else seen.any(-1) & counted[:, None]
        chosen = chosen.expand(each.shape[1:])
        self.sums += each[:, chosen].double().sum(1).cpu()
        self.queries += int(chosen.sum())

    def mean(self) -> Statistics:
        """The means over all that was added."""
        return Statistics(*(self.sums / self.queries).tolist())


@contextmanager
def observed(layers: Sequence[Attention]) -> Iterator[Totals]:
    """Within it, what these layers attend to is added to the totals, without queries that are padding."""
    totals = Totals()
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_watched(layer, totals))
        yield totals


@contextmanager
def _watched(layer: Attention, totals: Totals) -> Iterator[None]:
    padding: list[Tensor | None] = [None]
    attend = layer.attend

    def note(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        layout = named.get("layout", given[2] if len(given) > 2 else None)
        padding[0] = None if layout is None else layout.padding

    def attend_and_measure(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        measure(totals, q, k, padding[0], **how)
        return attend(q, k, v, **how)

    hook = layer.register_forward_pre_hook(note, with_kwargs=True)
    layer.attend = attend_and_measure  # type: ignore[method-assign]
    try:
        yield
    finally:
        hook.remove()
        del layer.attend


@torch.no_grad()
def measure(
    totals: Totals,
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys kv_heads head_dim"],
    padding: Bool[Tensor, "batch queries"] | None,
    *,
    pattern: Any,
    scale: float | None = None,
    bias: Any = None,
    query_documents: Tensor | None = None,
    key_documents: Tensor | None = None,
    positions: Tensor | None = None,
) -> None:
    """Add what attention with these arguments does, some rows of queries after the other."""
    (batch, queries, heads), keys = q.shape[:3], k.shape[1]
    scale = q.shape[3] ** -0.5 if scale is None else scale
    views = [aligned(one, queries, keys, query_documents, key_documents, positions, q.device) for one in pattern.heads]
    k = k.repeat_interleave(heads // k.shape[2], dim=2).permute(0, 2, 3, 1).float()
    height = max(1, NUMBERS // max(1, batch * heads * keys))
    for begin in range(0, queries, height):
        rows = slice(begin, min(begin + height, queries))
        logits = scale * q[:, rows].transpose(1, 2).float() @ k
        if bias is not None:
            logits = logits + bias.tile(rows, slice(None))
        seen = torch.stack([view.mask(rows) for view in views], dim=1).repeat_interleave(heads // len(views), dim=1)
        totals.add(logits, seen, None if padding is None else ~padding[:, rows])
