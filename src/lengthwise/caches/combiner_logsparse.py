"""What Combiner's form logsparse keeps: all tokens, and a summary of each block that waits for its other half."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from lengthwise.caches.combiner import Kept, Tokens
from lengthwise.caches.documents import DocumentState
from lengthwise.ops.combiner import summarise
from lengthwise.ops.combiner_views import Halves, Stretch
from lengthwise.ops.joint_attention import Call, Keys, Part, joint_attention


@dataclass(frozen=True)
class LogsparseSummaries(DocumentState):
    """Of the form logsparse: 2 L d numbers of each head, and 3 d for each bit of L that is 1.

    tokens: keys and values of all tokens, since a block's summary is made of its tokens. blocks: k̄, v̄ and the largest
    queries of the blocks that end where one begins that isn't full, the largest first.
    """

    tokens: Kept
    blocks: Kept
    position: Int[Tensor, " batch"] | int = 0

    @staticmethod
    def empty(keys: Tokens) -> LogsparseSummaries:
        """What is kept before the first token, for keys like these."""
        return LogsparseSummaries(Kept.none(keys, keys), Kept.none(keys, keys, keys))

    def sizes(self, position: int) -> list[int]:
        """Tokens, and the bits of their number."""
        return [position] * 2 + [position.bit_count()] * 3

    def block(self, level: int) -> tuple[Tensor, ...]:
        """k̄, v̄ and the largest queries of the waiting block of 2^level tokens, [batch, 1, heads, head_dim]."""
        at = (int(self.position) >> level + 1).bit_count()
        return tuple(x[:, at : at + 1] for x in self.blocks.tensors)

    def begun(self, level: int) -> Tensor:
        """The largest queries of the tokens that came before of an open block of 2^level tokens."""
        smaller = (int(self.position) % 2**level).bit_count()
        queries = self.blocks.tensors[2]
        return queries[:, queries.shape[1] - smaller :].amax(1, keepdim=True)

    def attend(self, q: Tokens, k: Tokens, v: Tokens) -> tuple[Tokens, LogsparseSummaries]:
        """What new tokens read that go on from equally many in all rows, and what is kept after them. This stays as it
        is."""
        if not q.shape[1]:
            return torch.zeros_like(v), self
        tokens, end = self.tokens.extend(k, v), int(self.position) + q.shape[1]
        alone = Stretch(size=1)
        call, waiting = Call([(k, v)], [Part(alone, (Keys(0, alone),))]), []
        for level in range(end.bit_length()):
            last = self.add(level, q, k, v, tokens, call)
            if end >> level & 1:
                waiting.append(last)
        blocks = Kept(tuple(torch.cat(same, 1) for same in zip(*reversed(waiting), strict=True)))
        return joint_attention(q, call.pairs, call.parts), LogsparseSummaries(tokens, blocks, end)

    def add(self, level: int, q: Tensor, k: Tensor, v: Tensor, tokens: Kept, call: Call) -> tuple[Tensor, ...]:
        """Add to a call what tokens see of the blocks of 2^level tokens, and give the last block that is waiting."""
        size, start = 2**level, int(self.position)
        end = start + q.shape[1]
        last: tuple[Tensor, ...] = ()
        begin = start // (2 * size) * 2 * size  # of a block and its other half
        if start >= begin + size:
            last = self.block(level)
            show(call, last, Stretch(0, min(begin + 2 * size, end) - start))
            begin += 2 * size
        elif begin < start and begin + size <= end:
            queries = torch.cat([self.begun(level), q[:, : begin + size - start]], 1)
            last = pooled(queries, *(x[:, begin : begin + size] for x in tokens.pair))
            show(call, last, Stretch(begin + size - start, min(begin + 2 * size, end) - start))
            begin += 2 * size
        elif begin < start:
            return last
        whole, rest = divmod(max(end - begin, 0), 2 * size)
        if whole:
            first, second = (Halves(begin - start, whole, size, second) for second in (False, True))
            found = pooled(*(first(x).flatten(0, 1) for x in (q, k, v)))
            show(call, tuple(x.unflatten(0, (len(q), whole)) for x in found), second)
        if rest >= size:
            at = begin - start + whole * 2 * size
            last = pooled(*(x[:, at : at + size] for x in (q, k, v)))
            show(call, last, Stretch(at + size, q.shape[1]))
        return last


def show(call: Call, block: tuple[Tensor, ...], queries: Stretch | Halves) -> None:
    """Add queries that see the summary of a block, or of one in each row."""
    if isinstance(queries, Halves) or queries.end is None or queries.end > queries.begin:
        call.add(queries, (x if x.ndim == 5 else x[:, None] for x in block[:2]))


def pooled(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k̄, v̄ and the largest queries of the blocks that the rows are, [rows, 1, heads, head_dim]."""
    highest = q.amax(1, keepdim=True)
    if k.shape[1] == 1:
        return k, v, highest
    key, value = summarise(highest, k, v)
    return key[:, None], value[:, None], highest
