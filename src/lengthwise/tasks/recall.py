"""Recall: find what came with a key, once or many times, its latest value, or what noise or filler lies between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lengthwise.errors import InputError
from lengthwise.tasks.task import Example, Task, distinct, empty_example, require_at_least


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(Task):
    """Multi-query associative recall: k_1 v_1 … k_n v_n, then every key once more, each time asked for its value.

    The n = `pairs` keys of an example differ; the queries stand in random order at random places of what follows,
    the rest is noise. The value is asked at the query and isn't shown. Tokens: 0 noise, then keys, then values
    (Arora et al. 2023, arXiv 2312.04927, which draws the places with a preference for early ones).
    """

    length: int = 64
    pairs: int = 8
    keys: int = 32
    values: int = 32
    title: ClassVar[str] = "associative recall"

    def __post_init__(self) -> None:
        require_at_least(pairs=(self.pairs, 1), keys=(self.keys, 1), values=(self.values, 2))
        if self.pairs > self.keys:
            raise InputError(f"{self.pairs} pairs need as many different keys, got {self.keys}")

    @property
    def vocab_size(self) -> int:
        """Noise, keys and values."""
        return 1 + self.keys + self.values

    @property
    def answers(self) -> range:
        """The values."""
        return range(1 + self.keys, self.vocab_size)

    @property
    def shortest(self) -> int:
        """The pairs and their queries."""
        return 3 * self.pairs

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length)
        shown = 2 * self.pairs
        keys = 1 + distinct(rng, batch, self.pairs, self.keys)
        values = rng.integers(1 + self.keys, self.vocab_size, keys.shape)
        tokens[:, 0:shown:2], tokens[:, 1:shown:2] = keys, values
        places = shown + distinct(rng, batch, self.pairs, length - shown)
        np.put_along_axis(tokens, places, keys, axis=1)
        np.put_along_axis(targets, places, values, axis=1)
        np.put_along_axis(mask, places, True, axis=1)
        return tokens, targets, mask


@dataclass(frozen=True, kw_only=True)
class SingleRecall(Task):
    """Associative recall with one query: a fresh map from keys to values, random pairs of it, a mark, and a key that
    was shown, whose value is asked.

    The loss is also on the values of the pairs, which can be known from the second time on that a key is shown. An odd
    length leaves out the first key. Tokens: keys, then values, then the mark (Poli et al. 2023, arXiv 2302.10866).
    """

    length: int = 26
    keys: int = 4
    values: int = 4
    title: ClassVar[str] = "associative recall with one query"

    def __post_init__(self) -> None:
        require_at_least(keys=(self.keys, 1), values=(self.values, 2))

    @property
    def vocab_size(self) -> int:
        """Keys, values and the mark."""
        return self.keys + self.values + 1

    @property
    def answers(self) -> range:
        """The values."""
        return range(self.keys, self.keys + self.values)

    @property
    def shortest(self) -> int:
        """A pair, the mark and the key."""
        return 4

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length + length % 2)
        pairs = tokens.shape[1] // 2 - 1
        value = rng.integers(self.keys, self.keys + self.values, (batch, self.keys))
        shown = rng.integers(0, self.keys, (batch, pairs))
        asked = np.take_along_axis(shown, rng.integers(length % 2, pairs, (batch, 1)), axis=1)
        keys = np.concatenate([shown, asked], axis=1)
        values = np.take_along_axis(value, keys, axis=1)
        tokens[:, 0:-2:2], tokens[:, 1:-2:2] = shown, values[:, :-1]
        tokens[:, -2], tokens[:, -1:] = self.keys + self.values, asked
        targets[:, 0:-2:2], targets[:, -1] = values[:, :-1], values[:, -1]
        mask[:, -1] = True
        begin = length % 2
        return tokens[:, begin:], targets[:, begin:], mask[:, begin:]

    def loss(self, logits: Float[Tensor, "batch length vocab"], example: Example) -> Float[Tensor, ""]:
        """Cross entropy in nats, averaged over the value asked for and those of the pairs."""
        keys = example.tokens < self.keys
        return F.cross_entropy(logits[keys].float(), example.targets[keys])


@dataclass(frozen=True, kw_only=True)
class DistantRecall(SingleRecall):
    """Associative recall with one query after noise: every key with its value once, in random order, then noise, the
    mark, and a key whose value is asked.

    The noise is drawn from symbols of its own. Tokens: keys, values, the mark, then noise.
    """

    length: int = 50
    noise: int = 4
    title: ClassVar[str] = "associative recall with one query after noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(noise=(self.noise, 1))

    @property
    def vocab_size(self) -> int:
        """Keys, values, the mark and noise."""
        return super().vocab_size + self.noise

    @property
    def shortest(self) -> int:
        """The pairs, the mark and the key, without noise."""
        return 2 * self.keys + 2

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length)
        mark, shown = self.keys + self.values, 2 * self.keys
        keys = distinct(rng, batch, self.keys, self.keys)
        values = rng.integers(self.keys, mark, keys.shape)
        asked = rng.integers(0, self.keys, (batch, 1))
        tokens[:] = rng.integers(mark + 1, self.vocab_size, (batch, length))
        tokens[:, 0:shown:2], tokens[:, 1:shown:2] = keys, values
        tokens[:, -2], tokens[:, -1:] = mark, np.take_along_axis(keys, asked, axis=1)
        targets[:, -1:] = np.take_along_axis(values, asked, axis=1)
        mask[:, -1] = True
        return tokens, targets, mask

    def loss(self, logits: Float[Tensor, "batch length vocab"], example: Example) -> Float[Tensor, ""]:
        """Cross entropy in nats of the value asked for; those shown can't be known."""
        return Task.loss(self, logits, example)


@dataclass(frozen=True, kw_only=True)
class Overwriting(Task):
    """Recall with overwriting: writes (key, value), then every key asked once for the value written last.

    The first `keys` writes use every key once in random order, the others draw keys with replacement; then all keys
    are asked in random order, each followed by its latest value. An odd length leaves out the last value, which
    nothing asks for. Tokens: keys, then values. A memory that only adds can't forget the older value (Schlag et al.
    2021, arXiv 2102.11174).
    """

    length: int = 64
    keys: int = 8
    values: int = 8
    title: ClassVar[str] = "recall with overwriting"

    def __post_init__(self) -> None:
        require_at_least(keys=(self.keys, 1), values=(self.values, 2))

    @property
    def vocab_size(self) -> int:
        """Keys and values."""
        return self.keys + self.values

    @property
    def answers(self) -> range:
        """The values."""
        return range(self.keys, self.vocab_size)

    @property
    def shortest(self) -> int:
        """Each key written once and asked once."""
        return 4 * self.keys - 1

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length + length % 2)
        writes = tokens.shape[1] // 2 - self.keys
        again = rng.integers(0, self.keys, (batch, writes - self.keys))
        written = np.concatenate([distinct(rng, batch, self.keys, self.keys), again], axis=1)
        values = rng.integers(self.keys, self.vocab_size, written.shape)
        latest = np.empty((batch, self.keys), dtype=np.int64)
        for i in range(writes):
            latest[np.arange(batch), written[:, i]] = values[:, i]
        asked = distinct(rng, batch, self.keys, self.keys)
        answers = np.take_along_axis(latest, asked, axis=1)
        tokens[:, 0::2] = np.concatenate([written, asked], axis=1)
        tokens[:, 1::2] = np.concatenate([values, answers], axis=1)
        targets[:, 2 * writes :: 2] = answers
        mask[:, 2 * writes :: 2] = True
        return tokens[:, :length], targets[:, :length], mask[:, :length]


@dataclass(frozen=True, kw_only=True)
class Induction(Task):
    """Induction heads: random tokens with one special token somewhere; it comes again at the end, and the token that
    followed it the first time is asked. Tokens: 0 special, then the others (Gu and Dao 2023, arXiv 2312.00752)."""

    length: int = 256
    vocabulary: int = 16
    title: ClassVar[str] = "induction"

    def __post_init__(self) -> None:
        require_at_least(vocabulary=(self.vocabulary, 3))

    @property
    def vocab_size(self) -> int:
        """The special token and the others."""
        return self.vocabulary

    @property
    def answers(self) -> range:
        """All but the special token."""
        return range(1, self.vocabulary)

    @property
    def shortest(self) -> int:
        """The special token, what follows it, and the special token."""
        return 3

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length)
        rows = np.arange(batch)
        tokens[:] = rng.integers(1, self.vocabulary, (batch, length))
        place = rng.integers(0, length - 2, batch)
        tokens[rows, place] = 0
        tokens[:, -1] = 0
        targets[:, -1] = tokens[rows, place + 1]
        mask[:, -1] = True
        return tokens, targets, mask


@dataclass(frozen=True, kw_only=True)
class GapRecall(Task):
    """Recall over a gap: a mark and a value, noise, then another mark, at which the value is asked.

        K v n_1 … n_g Q

    The noise is drawn from symbols of its own, so that all that is hard is the length g of the gap. Tokens: 0 the mark
    K, 1 the mark Q, then noise, then values.
    """

    length: int = 64
    values: int = 16
    noise: int = 14
    title: ClassVar[str] = "recall over a gap"

    def __post_init__(self) -> None:
        require_at_least(values=(self.values, 2), noise=(self.noise, 1))

    @property
    def vocab_size(self) -> int:
        """The marks, noise and values."""
        return 2 + self.noise + self.values

    @property
    def answers(self) -> range:
        """The values."""
        return range(2 + self.noise, self.vocab_size)

    @property
    def shortest(self) -> int:
        """The marks and the value, without a gap."""
        return self.length_of(0)

    @staticmethod
    def length_of(gap: int) -> int:
        """Tokens of an example with so much noise."""
        return gap + 3

    def is_noise(self, tokens: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """True where a token is noise."""
        return (tokens >= 2) & (tokens < 2 + self.noise)

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length)
        tokens[:] = rng.integers(2, 2 + self.noise, (batch, length))
        value = rng.integers(2 + self.noise, self.vocab_size, batch)
        tokens[:, 0], tokens[:, 1], tokens[:, -1] = 0, value, 1
        targets[:, -1] = value
        mask[:, -1] = True
        return tokens, targets, mask


@dataclass(frozen=True, kw_only=True)
class Passkey(Task):
    """A key of `digits` symbols hidden in filler that repeats itself, asked for at the end.

    The filler is a fixed sentence of `filler` tokens over and over, begun at a random place. At a random place stand
    a marker and the key; the sequence ends with the marker and all but the last symbol of the key, and from that
    second marker on the key is asked. Tokens: 0 marker, then filler, then symbols.
    """

    length: int = 256
    digits: int = 5
    symbols: int = 10
    filler: int = 24
    title: ClassVar[str] = "passkey"

    def __post_init__(self) -> None:
        require_at_least(digits=(self.digits, 1), symbols=(self.symbols, 2), filler=(self.filler, 1))

    @property
    def vocab_size(self) -> int:
        """Marker, filler and symbols."""
        return 1 + self.filler + self.symbols

    @property
    def answers(self) -> range:
        """The symbols of keys."""
        return range(1 + self.filler, self.vocab_size)

    @property
    def shortest(self) -> int:
        """The marker and the key, twice, without the last symbol."""
        return 2 * self.digits + 1

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length)
        asked = length - self.digits
        phase = rng.integers(0, self.filler, (batch, 1))
        tokens[:] = 1 + (phase + np.arange(length)) % self.filler
        key = rng.integers(1 + self.filler, self.vocab_size, (batch, self.digits))
        place = rng.integers(0, asked - self.digits, (batch, 1))
        np.put_along_axis(tokens, place, 0, axis=1)
        np.put_along_axis(tokens, place + 1 + np.arange(self.digits), key, axis=1)
        tokens[:, asked] = 0
        tokens[:, asked + 1 :] = key[:, :-1]
        targets[:, asked:] = key
        mask[:, asked:] = True
        return tokens, targets, mask
