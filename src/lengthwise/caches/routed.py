"""The cache of attention inside clusters: the latest keys and values of every cluster, and those not yet sorted in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lengthwise.caches.buffer import Buffer, appended, latest, leave
from lengthwise.contract import Layout, State
from lengthwise.ops.clustering import latest_members, neighbours
from lengthwise.ops.gathered_attention import NOWHERE, gathered_attention

Clusters = Int[Tensor, "batch new heads"]


@dataclass(frozen=True)
class RoutedCache(State):
    """The last w − 1 keys and values of each of k clusters, which with the next token make w, and the latest tokens.

    A token is first kept in the order in which it came. Every w tokens, counted in the row, those are sorted into the
    rings of their clusters, so that a decoded token copies no more than it reads. After L tokens that is
    (k (w − 1) + L mod w) · heads · (head_dim + value_dim) numbers a row, and as many clusters as there are latest
    tokens.

    members: w. seen: tokens seen in each row.
    keys, values: [batch, k, w − 1, heads, …], the latest last. filled: how many of a ring are of the document that goes
    on; those are its last. recent_keys, recent_values: [batch, seen mod w, heads, …]. recent_clusters: −1 where a token
    is of a document that has ended.
    """

    members: int
    seen: int
    keys: Float[Tensor, "batch clusters kept heads head_dim"]
    values: Float[Tensor, "batch clusters kept heads value_dim"]
    filled: Int[Tensor, "batch clusters heads"]
    recent_keys: Float[Tensor, "batch recent heads head_dim"]
    recent_values: Float[Tensor, "batch recent heads value_dim"]
    recent_clusters: Int[Tensor, "batch recent heads"]

    @staticmethod
    def empty(
        clusters: int,
        members: int,
        keys: Float[Tensor, "batch new heads head_dim"],
        values: Float[Tensor, "batch new heads value_dim"],
    ) -> RoutedCache:
        """A cache that has seen nothing, for keys and values like these."""
        batch, _, heads = keys.shape[:3]
        ring, read = (x.new_zeros(batch, clusters, members - 1, *x.shape[2:]) for x in (keys, values))
        filled = torch.zeros(batch, clusters, heads, dtype=torch.long, device=keys.device)
        return RoutedCache(members, 0, ring, read, filled, keys[:, :0], values[:, :0], filled[:, :0])

    def attend(
        self,
        q: Float[Tensor, "batch new heads head_dim"],
        keys: Float[Tensor, "batch new heads head_dim"],
        values: Float[Tensor, "batch new heads value_dim"],
        clusters: Clusters,
        layout: Layout | None = None,
        *,
        scale: float | None = None,
    ) -> tuple[Float[Tensor, "batch new heads value_dim"], RoutedCache]:
        """What new tokens read of the last members of their clusters, and the cache after them. This one stays as it
        is."""
        (near, read), buffer = appended(self, (self.recent_keys, self.recent_values), (keys, values))
        near_clusters = torch.cat([self.recent_clusters, clusters], 1)
        numbers = self._numbers(near_clusters, layout)
        k = self.keys.shape[1]
        groups = torch.where(numbers < 0, NOWHERE, numbers * k + near_clusters)
        attend = self._by_token if keys.shape[1] <= k else self._by_cluster
        o = attend(q, near.to(q.dtype), read.to(q.dtype), groups, scale)
        return o, self._after(near, read, near_clusters, numbers, layout, buffer)

    def _numbers(self, near: Int[Tensor, "batch near heads"], layout: Layout | None) -> Int[Tensor, "batch near heads"]:
        """The document of each of the near tokens: 0 for the one that went on, −1 for those that had ended."""
        kept = self.recent_clusters.shape[1]
        numbers = torch.where(near < 0, -1, 0)
        if layout is None:
            return numbers
        new = layout.starts.long().cumsum(1)[..., None].expand_as(near[:, kept:])
        return torch.cat([numbers[:, :kept], new], 1)

    def _ring_groups(self) -> Int[Tensor, "batch kept heads"]:
        """The cluster of everything in the rings, −1 where there is nothing of the document that goes on."""
        clusters, kept = self.keys.shape[1:3]
        slot = torch.arange(kept, device=self.keys.device)[:, None]
        number = torch.arange(clusters, device=self.keys.device)[:, None, None]
        there = slot >= kept - self.filled[:, :, None]
        return torch.where(there, number, NOWHERE).flatten(1, 2)

    def _by_cluster(self, q: Tensor, near: Tensor, read: Tensor, groups: Tensor, scale: float | None) -> Tensor:
        """All tokens sorted by their clusters, those of the rings among them; for many new tokens."""
        if self.seen >= self.members:
            near, read = (
                torch.cat([ring.flatten(1, 2).to(x.dtype), x], 1)
                for ring, x in ((self.keys, near), (self.values, read))
            )
            groups = torch.cat([self._ring_groups(), groups], 1)
        sets = neighbours(groups, self.members)
        own = (sets.index - (near.shape[1] - q.shape[1])).clamp_min(NOWHERE)
        first, last, places = sets.first, sets.last, sets.places
        return gathered_attention(q, near, read, own, sets.read, first=first, last=last, places=places, scale=scale)

    def _by_token(self, q: Tensor, near: Tensor, read: Tensor, groups: Tensor, scale: float | None) -> Tensor:
        """Each new token with the ring of its cluster and the near tokens as a set of its own; for few new tokens."""
        (batch, count, heads), kept, total = q.shape[:3], self.members - 1, near.shape[1]
        own = groups[:, total - count :]
        cluster = own % self.keys.shape[1]
        row, head = torch.arange(batch, device=q.device)[:, None, None], torch.arange(heads, device=q.device)
        rings = (ring[row, cluster, :, head].transpose(2, 3).flatten(1, 2) for ring in (self.keys, self.values))
        near, read = (torch.cat([ring.to(x.dtype), x], 1) for ring, x in zip(rings, (near, read), strict=True))
        filled = torch.where(own < self.keys.shape[1], self.filled[row, cluster, head], 0)
        slot = torch.arange(kept, device=q.device).expand(batch, heads, count, -1)
        alike = (own[:, :, None] == groups[:, None]).permute(0, 3, 1, 2)
        shown = torch.cat([slot >= kept - filled.transpose(1, 2)[..., None], alike], 3)
        # A key's place is its number in the cluster: the slots of the ring, and one more for each of the near tokens.
        places = torch.cat([slot, kept - 1 + alike.cumsum(3)], 3)
        step = torch.arange(count, device=q.device)[:, None]
        behind = torch.arange(count * kept, near.shape[1], device=q.device).expand(count, -1)
        index = torch.cat([step * kept + slot[0, 0], behind], 1)
        last = places.gather(3, (kept + total - count + step).expand(batch, heads, -1, -1))
        return gathered_attention(
            q,
            near,
            read,
            step.expand(batch, heads, -1, -1),
            torch.where(shown, index, NOWHERE),
            first=last - kept,
            last=last,
            places=places,
            scale=scale,
        )

    def _after(
        self,
        near: Tensor,
        read: Tensor,
        clusters: Int[Tensor, "batch near heads"],
        numbers: Int[Tensor, "batch near heads"],
        layout: Layout | None,
        buffer: Buffer | None,
    ) -> RoutedCache:
        """The cache that has seen the near tokens too."""
        count = near.shape[1] - self.recent_keys.shape[1]
        seen = self.seen + count
        rings, filled = (self.keys, self.values), self.filled
        if layout is not None and count:
            going = torch.where(layout.padding[:, -1:, None], NOWHERE, numbers[:, -1:])
            clusters = torch.where(numbers == going, clusters, NOWHERE)
            filled = torch.where(going == 0, filled, 0)
        begin = near.shape[1] - seen % self.members
        if begin:
            before = dataclasses.replace(self, filled=filled)
            rings, filled = before._sorted_in(near[:, :begin], read[:, :begin], clusters[:, :begin])
        after = RoutedCache(self.members, seen, *rings, filled, *latest((near, read, clusters), begin, buffer))
        leave(after, buffer)
        return after

    def _sorted_in(
        self, near: Tensor, read: Tensor, clusters: Int[Tensor, "batch near heads"]
    ) -> tuple[tuple[Tensor, Tensor], Int[Tensor, "batch clusters heads"]]:
        """The rings with these tokens in them, and how many of each count."""
        if self.seen >= self.members:
            near, read = (torch.cat([ring.flatten(1, 2), x], 1) for ring, x in ((self.keys, near), (self.values, read)))
            clusters = torch.cat([self._ring_groups(), clusters], 1)
        index, filled = latest_members(clusters, self.keys.shape[1], self.members - 1)
        row, head = torch.arange(near.shape[0], device=near.device), torch.arange(near.shape[2], device=near.device)
        rows = (row[:, None, None, None] * near.shape[1] + index) * near.shape[2] + head
        rings = (x.flatten(0, 2).index_select(0, rows.flatten()).unflatten(0, rows.shape) for x in (near, read))
        return tuple(rings), filled  # type: ignore[return-value]
