"""Sources and the targets to write for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.training.batches import Rows
from lengthwise.training.fit import cross_entropy
from lengthwise.training.packing import Packing, Sequences, next_token_rows


@dataclass(frozen=True)
class Pairs:
    """Rows of sources, and rows of the targets that begin where the sources end.

    A target begins with the token that starts an answer; each token after it is predicted.
    """

    sources: Int[Tensor, "batch source"]
    layout: Layout
    targets: Rows

    @staticmethod
    def packed(sources: Sequences, targets: Sequences, rows: Sequence[Sequence[int]] | None = None) -> Pairs:
        """The pairs of two lists of tokens [length].

        rows: the numbers of the pairs that share each row, one pair a row by default. Shorter rows are padded. Raises
        InputError where the lists aren't of one length, and where an empty source shares a row.
        """
        if len(sources) != len(targets):
            raise InputError(f"give as many sources as targets, got {len(sources)} and {len(targets)}")
        rows = [[n] for n in range(len(sources))] if rows is None else rows
        for row in rows:
            if len(row) > 1 and not all(len(sources[n]) for n in row):
                raise InputError(f"an empty source has no place in a row with others, as in {list(row)}")
        packing = side_by_side(rows, sources)
        return Pairs(packing.pack(sources), packing.layout(), next_token_rows(side_by_side(rows, targets), targets))


def side_by_side(rows: Sequence[Sequence[int]], sequences: Sequences) -> Packing:
    """Sequences in the rows that are said, as wide as the longest."""
    lengths = tuple(len(sequences[n]) for n in range(len(sequences)))
    width = max((sum(lengths[n] for n in row) for row in rows), default=0)
    return Packing(tuple(map(tuple, rows)), lengths, width)


def target_loss(model: nn.Module, pairs: Pairs) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of each token of a target given its source and those before it.

        − 1/N Σ_n Σ_{t=2..T_n} log p(y_{n,t} | y_{n,<t}, s_n)          N = Σ_n max(T_n − 1, 0)

    Raises InputError where there is none.
    """
    rows = pairs.targets
    if not rows.count:
        raise InputError("no target has a second token to predict; give longer ones")
    logits, _ = model(rows.inputs, None, rows.layout, pairs.sources, pairs.layout)
    return cross_entropy(logits, rows.counted)
