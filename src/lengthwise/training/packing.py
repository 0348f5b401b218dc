"""Packing: sequences of any lengths laid one after the other in rows, each a document that sees no other.

    f(S) = unpack(f(pack(S)))

for whatever maps each token by itself, and for every module of the contract that is given the rows' layout. So packed
training is separate training without what padding costs. A packer says what lies where; none divides a sequence:

    arrival    a row is filled until the next sequence doesn't fit, and then closed
    greedy     a row takes the longest that fits of those waiting in a buffer, and is closed when none does

    packing = greedy([len(s) for s in sequences], width=2048)
    rows = next_token_rows(packing, sequences)
    loss = packed_next_token_loss(model, rows)
    logits = packing.unpack(model(rows.inputs, None, rows.layout)[0])         one tensor a sequence

Xu et al. 2024, PackMamba, arXiv 2408.03865.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.contract import Layout
from lengthwise.errors import InputError
from lengthwise.training.batches import Rows
from lengthwise.training.fit import cross_entropy

Sequences = Sequence[Tensor] | Mapping[int, Tensor]
"""Tensors [tokens, ...] by their numbers."""


@dataclass(frozen=True)
class Packing:
    """What lies where.

    rows: for each row the numbers of its sequences, in order. lengths: tokens of each sequence. width: tokens of a row;
    what its sequences leave at the end is padding. An empty sequence lies in no row.
    """

    rows: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    width: int

    @property
    def padding(self) -> float:
        """The share of all places that is padding; 0 without any."""
        places = len(self.rows) * self.width
        return 1 - sum(self.lengths[n] for row in self.rows for n in row) / places if places else 0.0

    def select(self, rows: Sequence[int]) -> Packing:
        """The packing of the given rows alone. Sequences keep their numbers."""
        return replace(self, rows=tuple(self.rows[r] for r in rows))

    def layout(self) -> Layout:
        """Each sequence as a document, and padding."""
        layout = Layout.packed([[self.lengths[n] for n in row] for row in self.rows])
        rest = (0, self.width - layout.documents.shape[1])
        return Layout(F.pad(layout.positions, rest), F.pad(layout.documents, rest, value=-1))

    def pack(self, sequences: Sequences) -> Shaped[Tensor, "rows width *rest"]:
        """The rows, 0 at padding. Raises InputError where a sequence hasn't the length that was said."""
        packed = []
        for row in self.rows:
            parts = [sequences[n] for n in row]
            for n, part in zip(row, parts, strict=True):
                if len(part) != self.lengths[n]:
                    raise InputError(f"sequence {n} was packed with {self.lengths[n]} tokens, and has {len(part)}")
            rest = self.width - sum(map(len, parts))
            packed.append(torch.cat([*parts, parts[0].new_zeros(rest, *parts[0].shape[1:])]))
        return torch.stack(packed) if packed else torch.zeros(0, self.width, dtype=torch.long)

    def unpack(self, values: Shaped[Tensor, "rows width *rest"]) -> list[Tensor]:
        """What the rows hold of each sequence, in the order of their numbers; nothing of those in no row."""
        found = [values.new_empty(0, *values.shape[2:])] * len(self.lengths)
        for row, numbers in zip(values, self.rows, strict=True):
            sizes = [self.lengths[n] for n in numbers]
            for n, part in zip(numbers, row[: sum(sizes)].split(sizes), strict=True):
                found[n] = part
        return found


Packer = Callable[[Sequence[int], int], Packing]
"""What lies where, from the lengths of sequences and the tokens of a row."""


def arrival(lengths: Sequence[int], width: int) -> Packing:
    """Sequences in the order in which they come: a row is closed when the next one doesn't fit.

    Raises InputError for a sequence longer than `width`.
    """
    _require_room(lengths, width)
    rows: list[list[int]] = []
    room = 0
    for number, length in enumerate(lengths):
        if length > room:
            rows.append([])
            room = width
        if length:
            rows[-1].append(number)
            room -= length
    return Packing(tuple(map(tuple, rows)), tuple(lengths), width)


def greedy(lengths: Sequence[int], width: int, buffer: int = 1024) -> Packing:
    """Of `buffer` waiting sequences always the longest that fits: a row is closed when none does.

    The buffer is filled again after each, so that with a buffer of 1 this is the order of arrival. A step takes
    log(buffer) comparisons. Raises InputError for a sequence longer than `width`, and a buffer below 1.
    """
    _require_room(lengths, width)
    if buffer < 1:
        raise InputError(f"buffer must be at least 1 sequence, got {buffer}")
    coming = ((length, -number) for number, length in enumerate(lengths) if length)
    waiting = sorted(islice(coming, buffer))
    rows: list[list[int]] = []
    room = 0
    while waiting:
        fits = bisect_right(waiting, (room, 0))
        if not fits:
            rows.append([])
            room, fits = width, len(waiting)
        length, number = waiting.pop(fits - 1)
        rows[-1].append(-number)
        room -= length
        for following in islice(coming, 1):
            insort(waiting, following)
    return Packing(tuple(map(tuple, rows)), tuple(lengths), width)


PACKERS: dict[str, Packer] = {"arrival": arrival, "greedy": greedy}
"""The packers by name."""


def divided(lengths: Sequence[int], longest: int) -> list[tuple[int, int, int]]:
    """(number, begin, end) of consecutive pieces of at most `longest` tokens that together are the sequences."""
    if longest < 1:
        raise InputError(f"a piece must have room for at least 1 token, got {longest}")
    return [
        (number, begin, min(begin + longest, length))
        for number, length in enumerate(lengths)
        for begin in range(0, length, longest)
    ]


def _require_room(lengths: Sequence[int], width: int) -> None:
    if width < 1:
        raise InputError(f"a row must have room for at least 1 token, got {width}")
    for number, length in enumerate(lengths):
        if length > width:
            raise InputError(
                f"sequence {number} has {length} tokens and a row room for {width}; clip it, divide it as "
                "training.packing.divided says, or take longer rows"
            )


def next_token_rows(packing: Packing, sequences: Sequences) -> Rows:
    """Packed rows, and the token to predict at each place but the last of a sequence, which has no successor."""
    tokens, layout = packing.pack(sequences), packing.layout()
    mask = F.pad(layout.positions[:, 1:] > 0, (0, 1))
    return Rows(tokens, tokens.roll(-1, 1), layout.to(tokens.device), mask.to(tokens.device))


def packed_next_token_loss(model: nn.Module, rows: Rows) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of each token that has another before it in its document, given those before it.

        − 1/N Σ_d Σ_{t=2..L_d} log p(x_{d,t} | x_{d,<t})          N = Σ_d max(L_d − 1, 0)

    Raises InputError where there is none.
    """
    if not rows.count:
        raise InputError("no document of these rows has a second token to predict; give longer ones")
    logits, _ = model(rows.inputs, None, rows.layout)
    return cross_entropy(logits, rows.counted)
