"""Copying: repeat what was shown, at once, after a delay, or only what isn't noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lengthwise.tasks.task import Task, distinct, empty_example, require_at_least


@dataclass(frozen=True, kw_only=True)
class Copying(Task):
    """A string and then the same string: x_1 … x_n | x_1 … x_{n-1}, asked from the separator on.

    n = length // 2; an odd length begins with one noise token. Tokens: 0 noise, 1 separator, then the symbols.
    A model whose state holds b bits can't copy strings that carry more (Jelassi et al. 2024, arXiv 2402.01032).
    """

    length: int = 64
    symbols: int = 10
    title: ClassVar[str] = "copying"

    def __post_init__(self) -> None:
        require_at_least(symbols=(self.symbols, 2))

    @property
    def vocab_size(self) -> int:
        """Symbols, noise and separator."""
        return self.symbols + 2

    @property
    def answers(self) -> range:
        """The symbols."""
        return range(2, self.vocab_size)

    @property
    def shortest(self) -> int:
        """One symbol and the separator."""
        return 2

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length)
        n = length // 2
        text = rng.integers(2, self.vocab_size, (batch, n))
        tokens[:, length - 2 * n : length - n] = text
        tokens[:, length - n] = 1
        tokens[:, length - n + 1 :] = text[:, :-1]
        targets[:, length - n :] = text
        mask[:, length - n :] = True
        return tokens, targets, mask


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Task):
    """Data tokens at random places among noise, to be repeated in order at the markers that end the sequence.

    `memory` data tokens stand at random sorted places of the first length - memory positions, the rest is noise; then
    come `memory` markers, and at the i-th the i-th data token is asked. Tokens: 0 noise, 1 marker, then data. Which
    token to keep depends on the token, so a time-invariant recurrence can't solve it (Gu and Dao 2023, arXiv
    2312.00752).
    """

    length: int = 36
    memory: int = 4
    vocabulary: int = 16
    title: ClassVar[str] = "selective copying"

    def __post_init__(self) -> None:
        require_at_least(memory=(self.memory, 1), vocabulary=(self.vocabulary, 4))

    @property
    def vocab_size(self) -> int:
        """Noise, marker and data."""
        return self.vocabulary

    @property
    def answers(self) -> range:
        """The data tokens."""
        return range(2, self.vocabulary)

    @property
    def shortest(self) -> int:
        """Data without noise, and the markers."""
        return 2 * self.memory

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length)
        positions = length - self.memory
        places = np.sort(distinct(rng, batch, self.memory, positions), axis=1)
        data = rng.integers(2, self.vocabulary, (batch, self.memory))
        np.put_along_axis(tokens, places, data, axis=1)
        tokens[:, positions:] = 1
        targets[:, positions:] = data
        mask[:, positions:] = True
        return tokens, targets, mask


@dataclass(frozen=True, kw_only=True)
class DelayedCopying(Task):
    """Symbols, noise of other tokens, and as many prompts, at the i-th of which the i-th symbol is asked.

        s_1 … s_m n n … n p … p          asked at the prompts: s_1 … s_m

    m = `memory`, and noise fills the length. It doesn't matter what else stands between, only how much of it: what
    keeps the last tokens alone can't answer. Tokens: symbols, then noise, then the prompt.
    """

    length: int = 64
    memory: int = 8
    symbols: int = 8
    noise: int = 8
    title: ClassVar[str] = "delayed copying"

    def __post_init__(self) -> None:
        require_at_least(memory=(self.memory, 1), symbols=(self.symbols, 2), noise=(self.noise, 1))

    @property
    def vocab_size(self) -> int:
        """Symbols, noise and the prompt."""
        return self.symbols + self.noise + 1

    @property
    def answers(self) -> range:
        """The symbols."""
        return range(self.symbols)

    @property
    def shortest(self) -> int:
        """Symbols and prompts without noise."""
        return 2 * self.memory

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length, self.vocab_size - 1)
        prompts = length - self.memory
        text = rng.integers(self.symbols, size=(batch, self.memory))
        tokens[:, : self.memory] = targets[:, prompts:] = text
        tokens[:, self.memory : prompts] = rng.integers(
            self.symbols, self.symbols + self.noise, (batch, prompts - self.memory)
        )
        mask[:, prompts:] = True
        return tokens, targets, mask
