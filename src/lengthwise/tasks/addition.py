"""Addition of two numbers, digit by digit, in the formats that decide whether a model learns to go further."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lengthwise.contract import Layout, StateTree
from lengthwise.errors import InputError, unknown
from lengthwise.tasks.task import Example, Task, empty_example, require_at_least

PADDING, PLUS, EQUALS, DIGIT, HINT = 0, 1, 2, 3, 13
"""Tokens: the marks, the digits DIGIT … DIGIT + 9, and the hints from HINT on."""

CHOICES = {"order": ("standard", "reversed"), "scratchpad": ("none", "carries"), "carries": ("random", "chain")}
"""The values of the fields that are names."""


@dataclass(frozen=True, kw_only=True)
class Addition(Task):
    """a + b = c with a and b of n digits, leading zeros and all, and c of n + 1, asked after the equals sign.

        standard            5 7 6 + 3 6 1 = 0 9 3 7
        reversed            6 7 5 + 1 6 3 = 7 3 9 0
        reversed, hints     a 6 b 7 c 5 + a 1 b 6 c 3 = a 7 b 3 c 9 d 0
        reversed, carries   6 7 5 + 1 6 3 = 7 0 3 1 9 0 0 0 = 7 3 9 0

    n is drawn evenly from `fewest` to as many digits as the length has room for; shorter examples are padded on the
    left, and a model is told that this is no token.
    order: "standard" writes the most significant digit first, "reversed" the least significant one.
    hints: 0, or the number of hint tokens; before each digit stands the hint of its place, and the places of an example
    take a random run of neighbouring hints, the same in a, b and c. All of c is asked, its hints too.
    scratchpad: "carries" writes between the two each place of the sum, from the least significant on, with the carry
    that leaves it, and an equals sign; it is asked too.
    carries: "random" digits, or "chain": a carry that leaves the lowest place and goes through all the others.

    Tokens: padding, plus, equals, digits, hints. Zhou et al. 2024, arXiv 2402.09371.
    """

    length: int = 20
    fewest: int = 1
    order: str = "standard"
    hints: int = 0
    scratchpad: str = "none"
    carries: str = "random"
    title: ClassVar[str] = "addition"

    def __post_init__(self) -> None:
        require_at_least(fewest=(self.fewest, 1), hints=(self.hints, 0))
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)

    @property
    def vocab_size(self) -> int:
        """Padding, plus, equals, digits and hints."""
        return HINT + self.hints

    @property
    def answers(self) -> range:
        """Digits and hints, and the equals sign that ends a scratchpad."""
        return range(DIGIT if self.scratchpad == "none" else EQUALS, self.vocab_size)

    @property
    def shortest(self) -> int:
        """Room for the fewest digits."""
        return self.length_of(self.fewest)

    def length_of(self, digits: int) -> int:
        """Tokens of an example with operands of that many digits: all but the last digit of c."""
        return self.asked_of(digits) + self._each * 2 * digits + 1

    def asked_of(self, digits: int) -> int:
        """How many of them are asked."""
        work = 0 if self.scratchpad == "none" else 2 * (digits + 1) + 1
        return self._each * (digits + 1) + work

    def digits_in(self, length: int) -> int:
        """The largest number of digits that a length has room for."""
        fixed, each = self.length_of(0), self.length_of(1) - self.length_of(0)
        return (length - fixed) // each

    def written(self, a: int, b: int, *, digits: int | None = None, first: int = 0) -> Int[Tensor, " tokens"]:
        """The tokens of a + b = c.

        digits: n, as many as the larger operand needs by default. first: the hint of the least significant place.
        Raises InputError for negative numbers, numbers with more digits, and hints that aren't there.
        """
        n = max(len(str(a)), len(str(b))) if digits is None else digits
        if min(a, b) < 0 or max(a, b) >= 10**n:
            raise InputError(f"operands of {n} digits are at least 0 and below {10**n}, got {a} and {b}")
        if self.hints and not 0 <= first < self.hints - n:
            raise InputError(f"sums of {n} digits need {n + 1} hints, got {self.hints - first} from hint {first} on")
        places = [np.array([number // 10**k % 10 for k in range(n + 1)]) for number in (a, b)]
        return torch.from_numpy(self._text(places[0][:n], places[1][:n], first))

    def read(self, tokens: Int[Tensor, " tokens"]) -> tuple[int, int, int]:
        """a, b and c, as the tokens of one example have them, right or wrong. The inverse of `written`.

        Raises InputError for tokens that aren't three numbers around a plus and an equals sign.
        """
        text = tokens[tokens != PADDING]
        plus, equals = (text == PLUS).nonzero().flatten().tolist(), (text == EQUALS).nonzero().flatten().tolist()
        marks = 1 if self.scratchpad == "none" else 2
        if len(plus) != 1 or len(equals) != marks or plus[0] > equals[0]:
            raise InputError(f"a sum has one plus sign and then {marks} equals sign(s), got tokens {tokens.tolist()}")
        a, b, c = text[: plus[0]], text[plus[0] + 1 : equals[0]], text[equals[-1] + 1 :]
        return self._number(a), self._number(b), self._number(c)

    def of_digits(self, digits: int) -> Addition:
        """The same task for operands of this many digits alone."""
        return replace(self, fewest=digits, length=self.length_of(digits))

    def logits(self, model: nn.Module, example: Example) -> Float[Tensor, "batch length vocab"]:
        """The output of a model, to which padding is hidden."""
        padding = example.tokens == PADDING
        return model(example.tokens, layout=Layout.numbered(-padding.long()) if padding.any() else None)[0]

    @torch.inference_mode()
    def decoded(self, model: nn.Module, example: Example) -> float:
        """Share of the examples, all of one number of digits, that a model answers right word for word, where it reads
        up to the equals sign and then goes on from its state with the likeliest token each time."""
        asked = int(example.mask[0].sum())
        prompt, targets = example.tokens[:, : 1 - asked], example.targets[:, -asked:]
        if (prompt == PADDING).any() or (example.mask.sum(1) != asked).any():
            raise InputError("sums are decoded together where all have as many digits; draw them with of_digits")
        state: StateTree = None
        tokens, right = prompt, torch.ones_like(targets[:, 0], dtype=torch.bool)
        for target in targets.unbind(1):
            logits, state = model(tokens, state)
            tokens = logits[:, -1:].argmax(-1)
            right &= tokens[:, 0] == target
        return float(right.float().mean())

    @property
    def _each(self) -> int:
        """Tokens of a digit."""
        return 2 if self.hints else 1

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length, PADDING)
        most = self.digits_in(length)
        if self.hints and most + 1 > self.hints:
            raise InputError(f"sums of {most} digits need {most + 1} hints, got {self.hints}")
        for row, n in enumerate(rng.integers(self.fewest, most + 1, batch)):
            a, b = self._operands(rng, int(n))
            text = self._text(a, b, int(rng.integers(self.hints - n)) if self.hints else 0)
            begin = length - (len(text) - 1)
            tokens[row, begin:], targets[row, begin:] = text[:-1], text[1:]
            mask[row, length - self.asked_of(int(n)) :] = True
        return tokens, targets, mask

    def _operands(self, rng: np.random.Generator, digits: int) -> np.ndarray:
        """The digits of a and b, least significant first."""
        a, b = rng.integers(0, 10, (2, digits))
        if self.carries == "chain":
            a[0] = rng.integers(1, 10)
            b[0], b[1:] = rng.integers(10 - a[0], 10), 9 - a[1:]
        return np.stack([a, b])

    def _text(self, a: np.ndarray, b: np.ndarray, first: int) -> np.ndarray:
        """The tokens of one sum, whose operands are given least significant digit first."""
        c, leaving = np.zeros(len(a) + 1, dtype=np.int64), np.zeros(len(a) + 1, dtype=np.int64)
        c[:-1] = a + b
        for place in range(len(a)):
            leaving[place], c[place] = divmod(c[place], 10)
            c[place + 1] += leaving[place]
        parts = [self._written(a, first), np.array([PLUS]), self._written(b, first), np.array([EQUALS])]
        if self.scratchpad == "carries":
            parts += [DIGIT + np.stack([c, leaving], axis=1).reshape(-1), np.array([EQUALS])]
        return np.concatenate([*parts, self._written(c, first)])

    def _written(self, number: np.ndarray, first: int) -> np.ndarray:
        """The tokens of a number that is given least significant digit first."""
        places = np.arange(len(number))
        order = places if self.order == "reversed" else places[::-1]
        if not self.hints:
            return DIGIT + number[order]
        return np.stack([HINT + first + order, DIGIT + number[order]], axis=1).reshape(-1)

    def _number(self, tokens: Tensor) -> int:
        """The number that tokens write."""
        digits = [token - DIGIT for token in tokens.tolist() if DIGIT <= token < HINT]
        if not digits or len(digits) * self._each != len(tokens):
            raise InputError(f"a number has a digit for every {self._each} token(s), got {tokens.tolist()}")
        return int("".join(map(str, digits if self.order == "standard" else digits[::-1])))
