"""What is measured of a model at a multiple of its trained length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lengthwise.errors import InputError
from lengthwise.extrapolation.keys import KEYS, questions
from lengthwise.positions.stretch import end_of, stretched
from lengthwise.reports.records import Measurement, Skipped, mean_and_error
from lengthwise.tasks.corpus import Corpus
from lengthwise.training.evaluation import token_losses

FEWEST = 8
"""Windows without which nothing is measured: fewer give no standard error worth the name."""

LAST = 32
"""The bytes at the end of a window whose mean counts as its bits per byte; at most half of the trained length."""

SHORTEST = 8
"""The shortest distance of recall, and the bytes of the first range of positions at least."""

AT_ONCE = 16384
"""Tokens that a model reads at once."""

PASSAGE, CUE = 64, 16
"""Bytes of a copied passage, at most a quarter of the trained length, and of them its cue, which isn't scored."""

Told = Callable[[float], None]
"""Called with the fraction that is done."""


@dataclass(frozen=True)
class Grid:
    """The lengths of a study. trained: the context in training; lengths: the windows that are measured."""

    trained: int
    lengths: tuple[int, ...]

    @property
    def last(self) -> int:
        """The bytes at the end of each window that are scored."""
        return max(1, min(LAST, self.trained // 2))

    @property
    def spans(self) -> list[int]:
        """The spans of recall: halves of the trained length, and the windows."""
        return [*halves(self.trained), *(at for at in self.lengths if at >= SHORTEST)]

    def ranges(self, length: int) -> list[tuple[int, int]]:
        """Ranges of positions of a window that double in size, with a border at the trained length."""
        borders = [0, *halves(self.trained), self.trained]
        while borders[-1] < length:
            borders.append(2 * borders[-1])
        kept = [0, *(at for at in borders[1:] if at < length), length]
        return list(itertools.pairwise(kept))

    @property
    def tokens(self) -> int:
        """What one window costs to measure, in tokens read."""
        return sum(self.lengths) + sum(self.spans)


def halves(length: int) -> list[int]:
    """A length halved again and again, down to `SHORTEST`, the shortest first and without the length itself."""
    found = []
    while length // 2 >= SHORTEST:
        length //= 2
        found.append(length)
    return found[::-1]


def held_out_windows(held_out: Corpus, longest: int, count: int, every: int) -> Int[Tensor, "windows n"]:
    """Evenly spaced windows of the longest length and the byte after it. Raises InputError where the text is too short
    for `FEWEST` of them. every: the data has one held-out part in so many, to say how long it must be."""
    needed = FEWEST * longest + 1
    if len(held_out) < needed:
        raise InputError(
            f"{FEWEST} windows of {longest} bytes need {needed:,} bytes of held-out text, and the data has "
            f"{len(held_out):,}; give about {every * needed:,} bytes of data in all, or fewer --times"
        )
    return held_out.windows(max(count, FEWEST), longest)


@torch.no_grad()
def measure(
    model: nn.Module,
    windows: Int[Tensor, "windows n"],
    grid: Grid,
    *,
    name: str,
    scaling: str = "none",
    seed: int = 0,
    keys: bool = True,
    told: Told,
) -> Iterator[Measurement | Skipped]:
    """Bits per byte at the end of windows of each length and at each range of positions, and recall at each span.

    Windows of all lengths end at the same bytes. Recall: the share of keys that are named (`keys`), or the bits per
    byte that a passage needs less when it was there before. A scaling is set anew for each length. Lengths beyond the
    end of the model's positions are skipped with the reason, and so are those at which its losses aren't finite.
    """
    model.eval()
    end, done = end_of(model), 0
    recall, probe = ("keys", key_recall) if keys else ("copies", copy_recall)
    for kind, at in [*(("bits", at) for at in grid.lengths), *((recall, at) for at in grid.spans)]:
        done += at
        measured = "bits_at_length" if kind == "bits" else kind
        if end is not None and at > end:
            yield Skipped(name, measured, at, f"its positions end at {end}")
            continue
        with stretched(model, scaling, grid.trained, at):
            found = byte_losses(model, windows, at, grid) if kind == "bits" else probe(model, windows, at, grid)
        told(done / grid.tokens)
        if found is None:
            continue
        if not found.isfinite().all():
            yield Skipped(name, measured, at, "its losses are no finite numbers there")
        elif kind != "bits":
            yield measurement(name, seed, measured, at, found)
        else:
            yield measurement(name, seed, measured, at, found[:, -grid.last :].mean(1))
            for begin, stop in grid.ranges(at):
                yield measurement(name, seed, within(at), stop, found[:, begin:stop].mean(1))


def within(length: int) -> str:
    """The name of the measure of bits per byte against position in windows of one length."""
    return f"bits_at_position@{length}"


def byte_losses(
    model: nn.Module,
    windows: Int[Tensor, "windows n"],
    span: int,
    grid: Grid,  # noqa: ARG001
) -> Float[Tensor, "windows span"]:
    """Bits that each of the last `span` bytes takes."""
    return in_parts(lambda rows: token_losses(model, rows), windows[:, -(span + 1) :]).double() / math.log(2)


def key_recall(
    model: nn.Module,
    windows: Int[Tensor, "windows n"],
    span: int,
    grid: Grid,  # noqa: ARG001
) -> Float[Tensor, " windows"]:
    """1 where the key at the beginning of the span is the likeliest of all keys at its end, else 0; NaN where the model
    gives no finite numbers."""
    text, keys = questions(windows, span)
    logits = in_parts(lambda rows: model(rows)[0][:, -1, KEYS.start : KEYS.stop], text)
    named = (logits.argmax(1) + KEYS.start == keys).double()
    return named.masked_fill(~logits.isfinite().all(1), torch.nan)


def copy_recall(
    model: nn.Module, windows: Int[Tensor, "windows n"], span: int, grid: Grid
) -> Float[Tensor, " windows"] | None:
    """Bits per byte that a string of random letters at the end of the span needs less where it stood at the beginning
    than where another such string did. None where the span has no room for both."""
    size = max(4, min(PASSAGE, grid.trained // 4))
    if span < 2 * size:
        return None
    drawn = torch.Generator().manual_seed(0)
    same, other = torch.randint(ord("a"), ord("z") + 1, (2, len(windows), size), generator=drawn)
    text = windows[:, -span:].clone()
    text[:, -size:] = same
    bits = []
    for first in (other, same):
        text[:, :size] = first
        nats = in_parts(lambda rows: token_losses(model, rows), text)
        bits.append(nats[:, -(size - size * CUE // PASSAGE) :].double().mean(1) / math.log(2))
    return bits[0] - bits[1]


def in_parts(fn: Callable[[Tensor], Tensor], rows: Int[Tensor, "rows n"]) -> Tensor:
    """`fn` over so many rows at a time that a model reads about `AT_ONCE` tokens."""
    return torch.cat([fn(part) for part in rows.split(max(1, AT_ONCE // rows.shape[1]))])


def measurement(name: str, seed: int, measure: str, at: int, values: Sequence[float] | Tensor) -> Measurement:
    """The mean over windows with its standard error, and the values of each."""
    blocks = tuple(round(float(v), 5) for v in values)
    mean, error = mean_and_error(blocks)
    return Measurement(name, seed, measure, mean, at, error, blocks)
