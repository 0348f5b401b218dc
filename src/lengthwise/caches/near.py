"""What caches share that keep the latest keys and values, and a few of the earlier ones."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.caches.context import Context, join_documents, length_of_last, new_places
from lengthwise.contract import Layout, State


class NearCache(State):
    """The latest keys and values, near the next token.

    seen: tokens seen in each row. position: tokens seen of the document that goes on, None where that is `seen`.
    keys, values: the latest. Those before the document that goes on are not seen.
    """

    seen: int
    keys: Float[Tensor, "batch near kv_heads head_dim"]
    values: Float[Tensor, "batch near kv_heads value_dim"]
    position: Int[Tensor, " batch"] | None

    @property
    def past(self) -> Int[Tensor, " batch"] | int:
        """Tokens seen of the document that goes on, for all rows or for each."""
        return self.seen if self.position is None else self.position

    def places(self, count: int, layout: Layout | None = None) -> Int[Tensor, "rows count"]:
        """The positions of the next `count` tokens."""
        return new_places(self.past, count, layout, self.keys.device)

    def position_after(self, count: int, layout: Layout | None) -> Int[Tensor, " batch"] | None:
        """`position` after `count` more tokens."""
        if self.position is None and layout is None:
            return None
        position = length_of_last(self.past, count, layout, self.keys.shape[0], self.keys.device)
        one_document = not torch.compiler.is_compiling() and bool((position == self.seen + count).all())
        return None if one_document else position

    def context(
        self,
        near: tuple[Tensor, Tensor],
        count: int,
        layout: Layout | None,
        far: tuple[Tensor, Tensor, Int[Tensor, "rows far"]] | None = None,
        consecutive: bool = True,
    ) -> Context:
        """What `count` new tokens attend to. near: the latest keys and values, with the new ones behind them. far:
        earlier keys and values, and their places in the document, −1 in rows that don't see them. consecutive: whether
        near keys alone are seen alike wherever they stand."""
        batch, kept = near[0].shape[0], self.keys.shape[1]
        past = self.past[:, None] if isinstance(self.past, Tensor) else self.past
        old = [torch.arange(-kept, 0, device=near[0].device)[None] + past]
        if far is not None:
            old.insert(0, far[2])
        places = [*old, self.places(count, layout)]
        rows = max(len(x) for x in places)
        positions = torch.cat([x.expand(rows, -1) for x in places], dim=1)
        documents = None
        if self.position is not None or layout is not None:
            unseen = torch.cat([x.expand(batch, -1) for x in old], dim=1) < 0
            documents = join_documents(-unseen.long(), count, layout)
        if far is None:
            return Context(*near, positions, documents, consecutive)
        keys, values = (torch.cat([x.to(y.dtype), y], dim=1) for x, y in zip(far[:2], near, strict=True))
        return Context(keys, values, positions, documents, consecutive=False)
