"""Order from windows of one to m tokens, and no position encoding."""

from __future__ import annotations

from typing import ClassVar

from lengthwise.errors import InputError
from lengthwise.ops.pattern import Pattern
from lengthwise.ops.patterns import hard_alibi
from lengthwise.positions.position import Hook, Position


class HardALiBi(Position):
    """Hard-ALiBi: some heads see only the last tokens, each head one more than the one before it; the others see all.

        head a < m:  i − a ≤ j ≤ i          heads from m on:  j ≤ i

    No vector, no angle and no bias says where a token is. The m heads gather the tokens that stand right before the
    query, and those that see all find them again anywhere, so a copy learnt from short strings goes on at long ones.

    heads: of the attention that it serves. masked: m, half of them by default. Nothing to learn. The cache keeps all
    tokens for all heads, although the m windows need m (m − 1) / 2 tokens of one head. Raises InputError where `heads`
    isn't given, and for m above it.

    Jelassi et al. 2024, arXiv 2402.01032.
    """

    hooks: ClassVar[tuple[Hook, ...]] = ("pattern",)

    def __init__(self, *, heads: int | None = None, masked: int | None = None) -> None:
        super().__init__()
        if heads is None:
            raise InputError("hard_alibi has a window for each head and needs their number, as in hard_alibi(heads=8)")
        self._pattern = hard_alibi(heads=heads, masked=masked)
        self.heads, self.masked = heads, heads // 2 if masked is None else masked

    def pattern(self) -> Pattern:
        """A window for each of the masked heads, and all of the past for the others."""
        return self._pattern

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"heads={self.heads}, masked={self.masked}"
