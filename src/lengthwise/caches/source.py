"""What a decoder keeps of the sequence that it answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.contract import Layout, State
from lengthwise.errors import InputError


@dataclass(frozen=True)
class SourceCache(State):
    """Keys and values of an encoded source, made once and never added to: S · kv_heads · (head_dim + value_dim) numbers
    a row, however many tokens are decoded.

    keys: [batch, source, kv_heads, head_dim]. values: likewise.
    documents: the number of the source document that each key belongs to, counted from 0, −1 for padding; None where
    all rows are one document. latest: the number of decoded documents begun so far, less one; None with the former.
    """

    keys: Float[Tensor, "batch source kv_heads head_dim"]
    values: Float[Tensor, "batch source kv_heads value_dim"]
    documents: Int[Tensor, "batch source"] | None = None
    latest: Int[Tensor, " batch"] | None = None

    @staticmethod
    def of(
        keys: Float[Tensor, "batch source kv_heads head_dim"],
        values: Float[Tensor, "batch source kv_heads value_dim"],
        layout: Layout | None = None,
    ) -> SourceCache:
        """The cache of a source, before the first decoded token."""
        if layout is None or not keys.shape[1]:
            return SourceCache(keys, values)
        number = torch.where(layout.padding, -1, (layout.starts & ~layout.padding).cumsum(1) - 1)
        if not torch.compiler.is_compiling() and bool((number == 0).all()):
            return SourceCache(keys, values)
        return SourceCache(keys, values, number, number.new_full(number.shape[:1], -1))

    def read(self, count: int, layout: Layout | None = None) -> tuple[Int[Tensor, "batch count"] | None, SourceCache]:
        """The source document that each of `count` decoded tokens reads, and the cache after them.

        The n-th decoded document of a row reads the n-th source document of the row, and every one reads a source
        that is a single document; None where that is so in all rows. Raises InputError where there are more decoded
        documents than sources.
        """
        if self.documents is None or self.latest is None or not count:
            return None, self
        latest = self.latest[:, None]
        begins = torch.zeros(len(latest), count, dtype=torch.bool, device=latest.device)
        if layout is not None:
            begins = layout.starts & ~layout.padding
        first = (latest < 0) & (True if layout is None else ~layout.padding[:, :1])
        begins = torch.cat([begins[:, :1] | first, begins[:, 1:]], dim=1)
        number, last = latest + begins.cumsum(1), self.documents.amax(1, keepdim=True).clamp_min(0)
        if not torch.compiler.is_compiling():
            self._require_sources(number[:, -1], last[:, 0])
        return number.clamp_min(0).minimum(last), replace(self, latest=number[:, -1])

    @staticmethod
    def _require_sources(latest: Int[Tensor, " batch"], last: Int[Tensor, " batch"]) -> None:
        beyond = (latest > last) & (last > 0)
        if beyond.any():
            row = int(beyond.nonzero()[0])
            raise InputError(
                f"row {row} has {int(latest[row]) + 1} documents to decode and sources for {int(last[row]) + 1}; "
                "give a source for each of them, or one for all"
            )
