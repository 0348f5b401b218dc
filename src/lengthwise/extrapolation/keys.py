"""A key hidden in text, to be named again: recall that small models learn beside the text itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

KEYS = range(16, 32)
"""The bytes that keys are: control characters, which text has no use for."""

ASK = 5
"""The byte that asks for the key: ENQ, the control character of an enquiry."""

CHANCE = 1 / len(KEYS)
"""The share of keys that are named by guessing."""

ASKED = 3
"""How often a row in training asks for its key."""


def hide(tokens: Int[Tensor, "rows n"], rows: int, seed: tuple[int, ...]) -> Int[Tensor, "rows n"]:
    """The batch with a key in each of its first `rows` rows, asked for `ASKED` times later in the row.

        t … t k t … t ? k t … t ? k t …

    The key stands in place of a random byte, and after each question, in place of the next two.
    """
    rng = np.random.default_rng(seed)
    hidden = tokens.clone()
    pairs = tokens.shape[1] // 2
    for row in hidden[:rows]:
        first, *asked = (2 * np.sort(rng.choice(pairs, min(1 + ASKED, pairs), replace=False))).tolist()
        key = int(rng.integers(KEYS.start, KEYS.stop))
        row[first] = key
        for place in asked:
            row[place], row[place + 1] = ASK, key
    return hidden


def with_keys(batches: Iterator[Int[Tensor, "rows n"]], share: float, seed: int) -> Iterator[Int[Tensor, "rows n"]]:
    """Batches with keys in a share of their rows."""
    for step, tokens in enumerate(batches):
        yield hide(tokens, round(share * len(tokens)), (seed, step))


def questions(
    windows: Int[Tensor, "rows n"], length: int, seed: int = 0
) -> tuple[Int[Tensor, "rows length"], Int[Tensor, " rows"]]:
    """Text of `length` bytes that begins with a key and ends with the question for it; and the keys."""
    drawn = torch.Generator().manual_seed(seed)
    keys = torch.randint(KEYS.start, KEYS.stop, (len(windows),), generator=drawn)
    text = windows[:, -length:].clone()
    text[:, 0], text[:, -1] = keys, ASK
    return text, keys
