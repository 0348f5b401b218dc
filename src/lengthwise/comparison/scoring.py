"""How well a model predicts held-out text: in all, with more and more context, and when a passage comes again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lengthwise.errors import InputError
from lengthwise.reports.records import Measurement, mean_and_error
from lengthwise.tasks.corpus import Corpus
from lengthwise.training.evaluation import token_losses

WINDOWS, PASSAGES = 128, 64
"""Most windows of one context that are scored, and most passages that are scored with several contexts."""

FEWEST = 8
"""What is scored even when the time is up, so that there is a standard error."""

TARGET, CUE = 64, 16
"""Tokens of a passage. When it comes again, its first `CUE` tokens tell that it does and are not scored."""

BEYOND = 4
"""Contexts go up to this many times the trained length."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out text that every candidate is scored on, in an order that makes any first part of it a fair sample.

    windows: [count, length + 1]. passages: [count, longest context + TARGET]; the last TARGET tokens are scored.
    """

    windows: Int[Tensor, "count tokens"]
    passages: Int[Tensor, "passages span"]
    contexts: tuple[int, ...]
    bytes_per_token: float


def held_out_text(corpus: Corpus, length: int) -> HeldOut:
    """Windows and passages spread evenly over the held-out text. Raises InputError where no context fits in it."""
    try:
        windows = corpus.windows(WINDOWS, length)
    except InputError:
        raise InputError(
            f"the held-out tenth of the data has {len(corpus)} tokens, but one context needs {length + 1}; give more "
            "data or a smaller --length"
        ) from None
    longest = max((c for c in context_lengths(length) if c + TARGET <= len(corpus)), default=None)
    contexts = tuple(c for c in context_lengths(length) if longest is not None and c <= longest)
    span = (longest or 0) + TARGET - 1
    passages = corpus.windows(PASSAGES, span) if longest else windows[:0]
    return HeldOut(_shuffled(windows), _shuffled(passages), contexts, corpus.bytes_per_token)


def context_lengths(length: int) -> list[int]:
    """Powers of two from 16 to four times the trained length, and the trained length."""
    powers = {2**k for k in range(4, 31) if 2**k <= BEYOND * length}
    return sorted(powers | {length, BEYOND * length})


def _shuffled(rows: Int[Tensor, "count tokens"]) -> Int[Tensor, "count tokens"]:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def score(
    model: nn.Module,
    text: HeldOut,
    candidate: str,
    seed: int,
    *,
    seconds: float,
    context: Callable[[], AbstractContextManager],
) -> Iterable[Measurement]:
    """Bits per byte, bits per byte against context, and recall against distance, in about `seconds`.

    When time is short fewer windows and passages are scored, always the same ones first.
    """
    model.eval()
    rows = _until(text.windows, 8, 0.3 * seconds, lambda rows: bits(model, rows, text, context).mean(1, keepdim=True))
    yield _measurement(candidate, seed, "bits_per_byte", None, rows[:, 0])
    if not text.contexts:
        return
    distances = [c for c in text.contexts if c >= TARGET]
    table = _until(text.passages, 4, 0.7 * seconds, lambda rows: _passage_bits(model, rows, text, distances, context))
    for column, length in enumerate(text.contexts):
        yield _measurement(candidate, seed, "bits_at_context", length, table[:, column])
    for column, distance in enumerate(distances):
        saved = table[:, len(text.contexts) + column]
        yield _measurement(candidate, seed, "recall", distance, saved)


def _until(rows: Tensor, batch: int, seconds: float, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """`fn` over batches of rows, until the time is up."""
    begin, parts, done = time.perf_counter(), [], 0
    for part in rows.split(batch):
        parts.append(fn(part))
        done += len(part)
        if done >= FEWEST and (time.perf_counter() - begin) * (1 + batch / done) > seconds:
            break
    return torch.cat(parts)


def bits(model: nn.Module, tokens: Tensor, text: HeldOut, context: Callable[[], AbstractContextManager]) -> Tensor:
    """Bits per byte of each token after the first."""
    return token_losses(model, tokens, context).double() / math.log(2) / text.bytes_per_token


def _passage_bits(
    model: nn.Module,
    rows: Tensor,
    text: HeldOut,
    distances: list[int],
    context: Callable[[], AbstractContextManager],
) -> Tensor:
    """For each passage: bits per byte after each context, then the bits saved at each distance."""
    plain = {c: bits(model, rows[:, -(c + TARGET) :], text, context)[:, -TARGET:] for c in text.contexts}
    columns = [plain[c].mean(1) for c in text.contexts]
    for distance in distances:
        again = rows[:, -(distance + TARGET) :].clone()
        again[:, :TARGET] = rows[:, -TARGET:]
        second = bits(model, again, text, context)[:, -TARGET:]
        columns.append((plain[distance] - second)[:, CUE:].mean(1))
    return torch.stack(columns, dim=1)


def _measurement(candidate: str, seed: int, measure: str, at: int | None, values: Tensor) -> Measurement:
    blocks = tuple(round(v, 5) for v in values.tolist())
    mean, error = mean_and_error(blocks)
    return Measurement(candidate, seed, measure, mean, at, error, blocks)
