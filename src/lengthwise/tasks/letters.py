"""Strings of letters to be copied or looked up in, several packed into a row: what a state must hold word for word.

Every example is a prompt and an answer between marks, and only the letters of the answer and the end are asked for:

    letter_copying      $ s | s .                          the string again
    duplicate_ngram     $ s | s .                          the string again, in which n letters come twice
    prefix_lookup       $ g | s | answer .                 what follows the n-gram g in s, asked before s is read
    suffix_lookup       $ s | g answer .                   the same, asked after it
    phone_book          $ name number . … | name number .  the number of a name, after so many solved questions

Rows are filled with examples, the last of which is cut short and asks for nothing. Examples that stand before others
in a row aren't hidden from them. Jelassi et al. 2024, arXiv 2402.01032.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from lengthwise.errors import InputError
from lengthwise.tasks.task import Example, Task, distinct, empty_example, require_at_least

TRIES = 1000
"""Draws of a string in which an n-gram has to be the only one of its kind."""


@dataclass(frozen=True, kw_only=True)
class Letters(Task):
    """Examples of letters between marks, packed into rows; each of them has between `fewest` and `most` letters, drawn
    evenly.

    Tokens: the symbols, then `end`, `begin`, `separator` and padding. The output at each token is to be the next one.
    """

    length: int = 220
    letters: int = 26
    fewest: int = 5
    most: int = 20

    def __post_init__(self) -> None:
        require_at_least(letters=(self.letters, 2), fewest=(self.fewest, 1), most=(self.most, self.fewest))

    @property
    def symbols(self) -> int:
        """How many tokens are no marks."""
        return self.letters

    @property
    def end(self) -> int:
        """The mark `.`; `begin`, `separator` and padding are the three after it."""
        return self.symbols

    @property
    def begin(self) -> int:
        """The mark `$`."""
        return self.symbols + 1

    @property
    def separator(self) -> int:
        """The mark `|`."""
        return self.symbols + 2

    @property
    def padding(self) -> int:
        """The mark `*`."""
        return self.symbols + 3

    @property
    def vocab_size(self) -> int:
        """Symbols and marks."""
        return self.symbols + 4

    @property
    def answers(self) -> range:
        """The letters and the end."""
        return range(self.end + 1)

    @property
    def shortest(self) -> int:
        """Room for the longest example, without its end."""
        return self.tokens_of(self.most) - 1

    def tokens_of(self, letters: int) -> int:
        """Tokens of an example with so many letters, end and all."""
        raise NotImplementedError

    def example(self, rng: np.random.Generator, letters: int) -> tuple[np.ndarray, np.ndarray]:
        """A prompt and its answer, without the end."""
        raise NotImplementedError

    def alone(self, batch: int, *, seed: int = 0) -> Example:
        """`batch` examples, one in each row, padded on the right to the longest."""
        rng = np.random.default_rng(seed)
        texts = [next(self._examples(rng)) for _ in range(batch)]
        longest = max(len(text) for text, _ in texts) - 1
        tokens, targets, mask = empty_example(batch, longest, self.padding)
        for row, (text, asked) in enumerate(texts):
            to = len(text) - 1
            tokens[row, :to], targets[row, :to], mask[row, :to] = text[:-1], text[1:], asked[1:]
        return Example(*(torch.from_numpy(x) for x in (tokens, targets, mask)))

    def _examples(self, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Endless examples, and where each of them asks."""
        while True:
            prompt, answer = self.example(rng, int(rng.integers(self.fewest, self.most + 1)))
            text = np.concatenate([prompt, answer, [self.end]])
            yield text, np.arange(len(text)) >= len(prompt)

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length)
        examples = self._examples(rng)
        for row in range(batch):
            line, asked = np.empty(length + 1, dtype=np.int64), np.zeros(length + 1, dtype=bool)
            filled = 0
            while filled <= length:
                text, answer = next(examples)
                line[filled : filled + len(text)] = text[: length + 1 - filled]
                if filled + len(text) <= length + 1:
                    asked[filled : filled + len(text)] = answer
                filled += len(text)
            tokens[row], targets[row], mask[row] = line[:-1], line[1:], asked[1:]
        return tokens, targets, mask

    def _string(self, rng: np.random.Generator, letters: int) -> np.ndarray:
        return rng.integers(self.letters, size=letters)


@dataclass(frozen=True, kw_only=True)
class LetterCopying(Letters):
    """`$ s | s .`: a random string of letters, to be written again.

    A state of b bits can't copy more than 2^b of the D^n strings of n letters, however it was trained.
    """

    title: ClassVar[str] = "copying letters"

    def tokens_of(self, letters: int) -> int:
        """The string twice and three marks."""
        return 2 * letters + 3

    def example(self, rng: np.random.Generator, letters: int) -> tuple[np.ndarray, np.ndarray]:
        """The string between its marks, and the string."""
        text = self._string(rng, letters)
        return np.concatenate([[self.begin], text, [self.separator]]), text


@dataclass(frozen=True, kw_only=True)
class DuplicateNgram(LetterCopying):
    """Copying a string in which `ngram` letters stand at two places that don't overlap, with different letters after
    them: what looks up the last `ngram` letters finds two.

    Both places are drawn evenly. Raises InputError where two n-grams and the letter after the first have no room.
    """

    ngram: int = 2
    title: ClassVar[str] = "copying letters with an n-gram that comes twice"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(ngram=(self.ngram, 1), fewest=(self.fewest, 2 * self.ngram + 1))

    def _string(self, rng: np.random.Generator, letters: int) -> np.ndarray:
        text, n = super()._string(rng, letters), self.ngram
        # The second is moved on by what keeps them from overlapping, and leaves room for a letter after it.
        first, second = np.sort(rng.choice(letters - 2 * n + 1, 2, replace=False)) + np.array([0, n - 1])
        text[second : second + n] = text[first : first + n]
        text[second + n] = (text[first + n] + rng.integers(1, self.letters)) % self.letters
        return text


@dataclass(frozen=True, kw_only=True)
class NgramLookup(Letters):
    """A string s and an n-gram g that occurs in it once: the `answer` letters that follow it there are asked for.

    The place of g is drawn evenly. Raises InputError for strings without room for both, and where, among so few
    letters, none of many strings has an n-gram of its own.
    """

    ngram: int = 2
    answer: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(ngram=(self.ngram, 1), answer=(self.answer, 1))
        require_at_least(fewest=(self.fewest, self.ngram + self.answer))

    def _drawn(self, rng: np.random.Generator, letters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """s, g and the answer."""
        for _ in range(TRIES):
            text = self._string(rng, letters)
            place = int(rng.integers(letters - self.ngram - self.answer + 1))
            after = place + self.ngram
            ngram = text[place:after]
            windows = np.lib.stride_tricks.sliding_window_view(text, self.ngram)
            if (windows == ngram).all(1).sum() == 1:
                return text, ngram, text[after : after + self.answer]
        raise InputError(
            f"no {self.ngram} of {letters} letters out of {self.letters} came once only in {TRIES} strings; "
            "ask for more of them"
        )


@dataclass(frozen=True, kw_only=True)
class PrefixLookup(NgramLookup):
    """`$ g | s | answer .`: what to look for is known before the string is read, so little of it has to be kept."""

    title: ClassVar[str] = "looking up an n-gram that is given before the string"

    def tokens_of(self, letters: int) -> int:
        """The n-gram, the string, the answer and four marks."""
        return self.ngram + letters + self.answer + 4

    def example(self, rng: np.random.Generator, letters: int) -> tuple[np.ndarray, np.ndarray]:
        """The n-gram and the string, and what follows."""
        text, ngram, answer = self._drawn(rng, letters)
        marks = [self.begin], [self.separator]
        return np.concatenate([marks[0], ngram, marks[1], text, marks[1]]), answer


@dataclass(frozen=True, kw_only=True)
class SuffixLookup(NgramLookup):
    """`$ s | g answer .`: what to look for is known after the string is read, so all of it has to be kept."""

    title: ClassVar[str] = "looking up an n-gram that is given after the string"

    def tokens_of(self, letters: int) -> int:
        """The string, the n-gram, the answer and three marks."""
        return letters + self.ngram + self.answer + 3

    def example(self, rng: np.random.Generator, letters: int) -> tuple[np.ndarray, np.ndarray]:
        """The string and the n-gram, and what follows."""
        text, ngram, answer = self._drawn(rng, letters)
        return np.concatenate([[self.begin], text, [self.separator], ngram]), answer


@dataclass(frozen=True, kw_only=True)
class PhoneBook(Letters):
    """`$ name number . … | name number . … name number .`: the number of a name in a book of `fewest` to `most` lines.

    Names are different strings of `name` letters, numbers are of `digits` digits. `solved` other names of the book are
    asked and answered before the one that counts. Tokens: letters, digits, then the marks.
    """

    length: int = 256
    fewest: int = 4
    most: int = 10
    name: int = 4
    digits: int = 4
    solved: int = 2
    title: ClassVar[str] = "phone book"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(name=(self.name, 1), digits=(self.digits, 1), solved=(self.solved, 0))
        require_at_least(fewest=(self.fewest, self.solved + 1))
        if self.letters**self.name < self.most:
            raise InputError(f"{self.name} of {self.letters} letters make fewer than {self.most} names")

    @property
    def symbols(self) -> int:
        """Letters and digits."""
        return self.letters + 10

    @property
    def answers(self) -> range:
        """The digits and the end."""
        return range(self.letters, self.end + 1)

    def tokens_of(self, letters: int) -> int:
        """Tokens of an example with a book of so many lines."""
        return (letters + self.solved + 1) * (self.name + self.digits + 1) + 2

    def example(self, rng: np.random.Generator, letters: int) -> tuple[np.ndarray, np.ndarray]:
        """The book, the solved questions and the name, and its number."""
        names = self._names(rng, letters)
        numbers = rng.integers(self.letters, self.symbols, (letters, self.digits))
        lines = np.concatenate([names, numbers, np.full((letters, 1), self.end)], axis=1)
        *solved, asked = distinct(rng, 1, self.solved + 1, letters)[0]
        text = [[self.begin], lines.reshape(-1), [self.separator], lines[solved].reshape(-1), names[asked]]
        return np.concatenate(text).astype(np.int64), numbers[asked]

    def _names(self, rng: np.random.Generator, count: int) -> np.ndarray:
        names = np.empty((0, self.name), dtype=np.int64)
        while len(names) < count:
            more = np.concatenate([names, rng.integers(self.letters, size=(count, self.name))])
            _, first = np.unique(more, axis=0, return_index=True)
            names = more[np.sort(first)]
        return names[:count]
