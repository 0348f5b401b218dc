"""ListOps: the value of a nested expression over lists of digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from lengthwise.errors import InputError
from lengthwise.tasks.task import Task, empty_example, require_at_least

OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(np.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
"""The minimum, the maximum, the integer part of the median, and the sum modulo 10 of a list of digits."""

NAMES = [*map(str, range(10)), *OPERATORS, "]", " "]
"""The tokens: digits, operators, the end of a list, and padding."""

END, PADDING = NAMES.index("]"), NAMES.index(" ")


@dataclass
class Node:
    """A digit, or an operator with the nodes of its list."""

    depth: int
    value: int = 0
    operator: str = ""
    children: list[Node] = field(default_factory=list)

    def tokens(self) -> list[int]:
        """The expression in prefix notation."""
        if not self.operator:
            return [self.value]
        inside = [token for child in self.children for token in child.tokens()]
        return [NAMES.index(self.operator), *inside, END]

    def result(self) -> int:
        """The value of the expression."""
        if not self.operator:
            return self.value
        return OPERATORS[self.operator]([child.result() for child in self.children])


@dataclass(frozen=True, kw_only=True)
class ListOps(Task):
    """The value of a nested expression such as [MAX 2 9 [MIN 4 7 ] 0 ], asked at its last token.

    Each expression is grown by turning a random digit into a list of 2 to `arguments` digits, until it fills a number
    of tokens drawn from length // 2 to length; padding stands on the left. Depth is limited to `depth` lists. Nangia
    and Bowman 2018, arXiv 1804.06028, in the form of the Long Range Arena (arXiv 2011.04006), which draws trees from
    a branching process and discards those of another length.
    """

    length: int = 128
    depth: int = 10
    arguments: int = 10
    title: ClassVar[str] = "ListOps"

    def __post_init__(self) -> None:
        require_at_least(depth=(self.depth, 1), arguments=(self.arguments, 2))

    @property
    def vocab_size(self) -> int:
        """Digits, operators, the end of a list and padding."""
        return len(NAMES)

    @property
    def answers(self) -> range:
        """The digits. They aren't equally frequent: always answering the most frequent one does better than chance."""
        return range(10)

    @property
    def shortest(self) -> int:
        """A list of two digits."""
        return 4

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length, PADDING)
        for row in range(batch):
            tree = self._grow(rng, int(rng.integers(max(self.shortest, length // 2), length + 1)))
            text = tree.tokens()
            tokens[row, length - len(text) :] = text
            targets[row, -1] = tree.result()
        mask[:, -1] = True
        return tokens, targets, mask

    def _grow(self, rng: np.random.Generator, size: int) -> Node:
        """An expression of `size` tokens, or up to two fewer where no list fits in what is left."""
        root = Node(depth=0)
        open_digits, room = [root], size - 1
        while room >= 3:
            if not open_digits:
                raise InputError(
                    f"lists of at most {self.arguments} nested {self.depth} deep can't fill {size} tokens; "
                    "raise depth or arguments, or ask for a smaller length"
                )
            at = int(rng.integers(len(open_digits)))
            node = open_digits[at]
            open_digits[at] = open_digits[-1]
            open_digits.pop()
            count = int(rng.integers(2, min(self.arguments, room - 1) + 1))
            node.operator = str(rng.choice(list(OPERATORS)))
            node.children = [Node(node.depth + 1, int(rng.integers(10))) for _ in range(count)]
            if node.depth + 1 < self.depth:
                open_digits += node.children
            room -= count + 1
        return root
