"""One cue among noise, to be named at one place, however far away it stood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lengthwise.errors import unknown
from lengthwise.tasks.task import Task, empty_example, require_at_least

ENDS = ("last", "first")


@dataclass(frozen=True, kw_only=True)
class Cue(Task):
    """Noise with one cue at a random place, which is asked for at the last token, or at the first.

        n … n c n … n        asked: c, at the token named by `answered`, which is noise itself

    To name it, that token must be reached from wherever the cue is: what sees the share s of the other places without a
    detour gets about s + (1 − s) / cues right. Asked at the first token it is a task for models that read both ways.
    Tokens: noise, then cues.
    """

    length: int = 256
    noise: int = 32
    cues: int = 8
    answered: str = "last"
    title: ClassVar[str] = "a cue in noise"

    def __post_init__(self) -> None:
        require_at_least(noise=(self.noise, 1), cues=(self.cues, 2))
        if self.answered not in ENDS:
            raise unknown("end", self.answered, ENDS)

    @property
    def vocab_size(self) -> int:
        """Noise and cues."""
        return self.noise + self.cues

    @property
    def answers(self) -> range:
        """The cues."""
        return range(self.noise, self.vocab_size)

    @property
    def shortest(self) -> int:
        """The cue and the token at which it is asked for."""
        return 2

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length)
        tokens[:] = rng.integers(0, self.noise, (batch, length))
        place = rng.integers(0, length - 1, batch) + (self.answered == "first")
        cue = rng.integers(self.noise, self.vocab_size, batch)
        tokens[np.arange(batch), place] = cue
        asked = 0 if self.answered == "first" else -1
        targets[:, asked], mask[:, asked] = cue, True
        return tokens, targets, mask
