"""Addition of two numbers, digit by digit, in the formats that decide whether a model learns to go further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from lengthwise.errors import InputError
from lengthwise.tasks.task import Task, empty_example, require_at_least

PLUS, EQUALS, PADDING, HINT = 10, 11, 12, 13
"""Tokens after the ten digits; the hints are HINT, HINT + 1, …"""


@dataclass(frozen=True, kw_only=True)
class Addition(Task):
    """a + b = c with a and b of n digits and c of n + 1, asked after the equals sign.

    n is drawn from `fewest` to as many digits as the length has room for; shorter examples are padded on the left.
    order: "standard" writes the most significant digit first, "reversed" the least significant one.
    hints: 0, or the number of hint tokens; before each digit stands the hint of its place, and the places of an
    example take a random run of neighbouring hints, the same in a, b and c. Digits and hints of c are shown, only its
    digits are asked. Tokens: 0 to 9, plus, equals, padding, hints (Zhou et al. 2024, arXiv 2402.09371).
    """

    length: int = 20
    fewest: int = 1
    order: Literal["standard", "reversed"] = "standard"
    hints: int = 0
    title: ClassVar[str] = "addition"

    def __post_init__(self) -> None:
        require_at_least(fewest=(self.fewest, 1), hints=(self.hints, 0))
        if self.order not in ("standard", "reversed"):
            raise InputError(f"order must be 'standard' or 'reversed', got {self.order!r}")

    @property
    def vocab_size(self) -> int:
        """Digits, plus, equals, padding and hints."""
        return HINT + self.hints

    @property
    def answers(self) -> range:
        """The digits."""
        return range(10)

    @property
    def shortest(self) -> int:
        """Room for the fewest digits."""
        return self.length_of(self.fewest)

    def length_of(self, digits: int) -> int:
        """Tokens of an example with operands of that many digits: all of a + b = c but the last digit of c."""
        return (2 if self.hints else 1) * (3 * digits + 1) + 1

    def digits_in(self, length: int) -> int:
        """The largest number of digits that a length has room for."""
        return ((length - 1) // (2 if self.hints else 1) - 1) // 3

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length, PADDING)
        most = self.digits_in(length)
        if self.hints and most + 1 > self.hints:
            raise InputError(f"sums of {most} digits need {most + 1} hints, got {self.hints}")
        for row, n in enumerate(rng.integers(self.fewest, most + 1, batch)):
            text, asked = self._sum(rng, int(n))
            begin = length - (len(text) - 1)
            tokens[row, begin:] = text[:-1]
            targets[row, begin:] = text[1:]
            mask[row, begin:] = asked[1:]
        return tokens, targets, mask

    def _sum(self, rng: np.random.Generator, digits: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of one sum, and where a digit of its answer stands."""
        numbers = np.zeros((3, digits + 1), dtype=np.int64)
        numbers[:2, :digits] = rng.integers(0, 10, (2, digits))
        carry = 0
        for place in range(digits + 1):
            carry, numbers[2, place] = divmod(int(numbers[0, place] + numbers[1, place]) + carry, 10)
        first = int(rng.integers(0, self.hints - digits)) if self.hints else 0
        a, b, c = (
            self._written(number[:n], first) for number, n in zip(numbers, (digits, digits, digits + 1), strict=True)
        )
        text = np.concatenate([a, [PLUS], b, [EQUALS], c])
        asked = np.zeros(len(text), dtype=bool)
        asked[len(text) - len(c) :] = c < 10
        return text, asked

    def _written(self, number: np.ndarray, first: int) -> np.ndarray:
        """The tokens of a number that is given least significant digit first."""
        places = np.arange(len(number))
        order = places if self.order == "reversed" else places[::-1]
        if not self.hints:
            return number[order]
        return np.stack([HINT + first + order, number[order]], axis=1).reshape(-1)
