"""What a model that was trained at one length is scored on: held-out text, read through windows of lengths it knows.

No model is given more tokens at once than it was trained with: positions that training never showed would be punished,
not the length. All models of all lengths are scored on the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lengthwise.errors import InputError
from lengthwise.reports.records import Measurement, mean_and_error
from lengthwise.tasks.corpus import Corpus
from lengthwise.tasks.minimal_pairs import MinimalPairs, code_pairs, swapped_pairs
from lengthwise.tasks.repeated_words import RepeatedWords, repeated_words
from lengthwise.training.evaluation import evaluate_windows

PASSAGES, FEWEST = 256, 8
"""Passages that are scored at most, and the fewest of which a standard error means something."""

PAIRS, FRAGMENT = 300, 28
"""Minimal pairs, and tokens of each where the shortest length allows."""

WORDS, NEAR, FAR, LONGEST_WORD = 400, 64, 400, 24
"""Words that come again: how many, how far back their last showing lies, and their letters."""

AT_ONCE = 8192
"""Tokens that are scored at a time."""

Context = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class LengthText:
    """Held-out text for all lengths. The last `target` tokens of each passage are scored, as the end of each of `reads`
    last tokens of it.

    passages: [count, longest]. left_out: measures that the text doesn't allow, and why.
    """

    passages: Int[Tensor, "passages longest"]
    target: int
    reads: tuple[int, ...]
    bytes_per_token: float
    pairs: MinimalPairs | None = None
    repeats: RepeatedWords | None = None
    left_out: tuple[tuple[str, str], ...] = ()

    def tokens(self, length: int) -> int:
        """About how many tokens are read to score a model of that length."""
        passages = len(self.passages) * sum(n for n in self.reads if n <= length)
        pairs = 2 * self.pairs.right.numel() if self.pairs else 0
        words = len(self.repeats) * min(length, self.repeats.windows.shape[1]) if self.repeats else 0
        return passages + pairs + words


def length_text(held_out: Corpus, lengths: tuple[int, ...], kind: str) -> LengthText:
    """Passages spread evenly over the held-out text, minimal pairs of a kind ("letters", "code", "none"), and words
    that come again. Raises InputError where the text is too short for the longest length."""
    shortest, longest = min(lengths), max(lengths)
    if len(held_out) < FEWEST * longest:
        raise InputError(
            f"the held-out tenth of the data has {len(held_out)} tokens, but {FEWEST} windows of {longest} need "
            f"{FEWEST * longest}; give more data or smaller --lengths"
        )
    passages = held_out.windows(PASSAGES, longest - 1)
    between = {2**k for k in range(4, 31) if shortest < 2**k < longest}
    left_out: list[tuple[str, str]] = []
    pairs = repeats = None
    if kind != "none":
        make = code_pairs if kind == "code" else swapped_pairs
        try:
            pairs = make(held_out, PAIRS, min(FRAGMENT, shortest))
        except InputError as error:
            left_out.append(("pairs", str(error)))
    span, word = min(longest, FAR + LONGEST_WORD), min(LONGEST_WORD, shortest - 2)
    try:
        if span - word < NEAR + LONGEST_WORD:
            raise InputError(f"a longest length of {longest} has no room for words that come again far back")
        repeats = repeated_words(held_out, WORDS, span, NEAR, span - word, word)
    except InputError as error:
        left_out.append(("repeats", str(error)))
    reads = tuple(sorted(between | set(lengths)))
    return LengthText(passages, shortest // 2, reads, held_out.bytes_per_token, pairs, repeats, tuple(left_out))


@torch.no_grad()
def score_length(
    model: nn.Module, text: LengthText, key: str, length: int, seed: int, context: Context
) -> Iterator[Measurement]:
    """Every measurement of the quality of one model, which records call `key`."""
    model.eval()
    found = {n: bits(model, text.passages[:, -n:], text, context).mean(1) for n in text.reads if n <= length}
    for n, values in found.items():
        yield measurement(key, "bits_at_context", n, seed, values)
    short, long = found[text.reads[0]], found[length]
    yield measurement(key, "bits_long", None, seed, long)
    yield measurement(key, "bits_short", None, seed, short)
    yield measurement(key, "context_gain", None, seed, short - long)
    if text.pairs is not None:
        with context():
            yield measurement(key, "pairs", None, seed, text.pairs.outcomes(model).double())
    if text.repeats is not None:
        with context():
            yield measurement(key, "repeats", None, seed, text.repeats.losses(model, length) / math.log(2))


def bits(
    model: nn.Module, rows: Int[Tensor, "rows length"], text: LengthText, context: Context
) -> Float[Tensor, "rows target"]:
    """Bits per byte of the last tokens of each row."""
    device = next(model.parameters()).device
    nats = evaluate_windows(model, rows, batch=max(1, AT_ONCE // rows.shape[1]), device=device, context=context)
    return nats[:, -text.target :].double() / math.log(2) / text.bytes_per_token


def measurement(key: str, measure: str, at: int | None, seed: int, values: Tensor) -> Measurement:
    """The mean of values that all models have of the same stretches of text."""
    blocks = tuple(round(value, 5) for value in values.tolist())
    mean, error = mean_and_error(blocks)
    return Measurement(key, seed, measure, mean, at, error, blocks)
