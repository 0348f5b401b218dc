"""Slot recall: tokens that each carry a type and a value, and prompts that ask for the value of a type far away."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lengthwise.contract import Layout
from lengthwise.tasks.task import Example, Task, distinct, empty_example, require_at_least
from lengthwise.training.fit import UNCOUNTED, cross_entropy


@dataclass(frozen=True, kw_only=True)
class SlotRecall(Task):
    """Every type once as a slot (type, value), at random places among noise; then, at the end, prompts of types.

        … n s_{5,2} n n s_{1,7} n … n | q_1 q_5 …          asked at q_1: 7, at q_5: 2

    The slots stand within the first `within` tokens, in random order; noise fills what is left before the prompts. The
    `questions` prompts are of different types, in random order; the value is asked at the prompt and isn't shown. What
    to look for is known only from the content, and at the default sizes every slot lies at least 97 tokens back.

    Tokens: slots, type · values + value; then a prompt for each type, then the values, then noise. After the
    experiments of Roy et al. 2020, arXiv 2003.05997, in which content decides what is attended to.
    """

    length: int = 256
    types: int = 32
    values: int = 8
    noise: int = 64
    questions: int = 32
    within: int = 128
    title: ClassVar[str] = "slot recall"

    def __post_init__(self) -> None:
        require_at_least(
            types=(self.types, 1),
            values=(self.values, 2),
            noise=(self.noise, 1),
            questions=(self.questions, 1),
            within=(self.within, self.types),
            types_for_the_questions=(self.types, self.questions),
        )

    @property
    def prompts(self) -> range:
        """The prompts, by type."""
        return range(self.types * self.values, self.types * (self.values + 1))

    @property
    def answers(self) -> range:
        """The values."""
        return range(self.prompts.stop, self.prompts.stop + self.values)

    @property
    def noises(self) -> range:
        """The tokens that say nothing."""
        return range(self.answers.stop, self.answers.stop + self.noise)

    @property
    def vocab_size(self) -> int:
        """Slots, prompts, values and noise."""
        return self.noises.stop

    @property
    def shortest(self) -> int:
        """The slots and the prompts."""
        return self.types + self.questions

    def logits(self, model: nn.Module, example: Example) -> Float[Tensor, "batch length vocab"]:
        """The output of a model on a batch, with the values alone to choose from."""
        return self.of_answers(super().logits(model, example))

    def of_answers(self, logits: Float[Tensor, "batch length vocab"]) -> Float[Tensor, "batch length vocab"]:
        """Logits at which what is no value can't be answered.

        Whether a token is a prompt is then nothing that a model has to tell, so that prompts aren't drawn away from the
        slots of their type.
        """
        token = torch.arange(logits.shape[2], device=logits.device)
        value = (token >= self.answers.start) & (token < self.answers.stop)
        return logits.masked_fill(~value, -torch.inf)

    def _slots(self, rng: np.random.Generator, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each row the slot tokens in random order, and the prompts and their answers in another."""
        value = rng.integers(0, self.values, (batch, self.types))
        shown = distinct(rng, batch, self.types, self.types)
        asked = distinct(rng, batch, self.questions, self.types)
        slots = shown * self.values + np.take_along_axis(value, shown, axis=1)
        return slots, self.prompts.start + asked, self.answers.start + np.take_along_axis(value, asked, axis=1)

    def _scatter(self, rng: np.random.Generator, tokens: np.ndarray, slots: np.ndarray) -> None:
        """Noise everywhere, and the slots at random places."""
        tokens[:] = rng.integers(self.noises.start, self.noises.stop, tokens.shape)
        places = distinct(rng, len(tokens), self.types, min(self.within, tokens.shape[1]))
        np.put_along_axis(tokens, places, slots, axis=1)

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length)
        slots, prompts, answers = self._slots(rng, batch)
        begin = length - self.questions
        self._scatter(rng, tokens[:, :begin], slots)
        tokens[:, begin:], targets[:, begin:], mask[:, begin:] = prompts, answers, True
        return tokens, targets, mask


@dataclass(frozen=True, kw_only=True)
class SlotQuestion(SlotRecall):
    """Slot recall with the question in front: padding, one prompt, and a long context with the slots anywhere in it.

        [padding … padding q_5] [n s_{1,7} n n … s_{5,2} … n]          asked at q_5: 2

    The prompt is the last of the first `places` tokens. `layout` says where the padding is and marks the prompt, for
    models that look at what is marked first (Zeng et al. 2023, arXiv 2305.04241). Tokens: those of slot recall, and
    one for padding.
    """

    length: int = 528
    questions: int = 1
    within: int = 512
    places: int = 16
    title: ClassVar[str] = "slot recall with the question in front"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(places=(self.places, self.questions))

    @property
    def vocab_size(self) -> int:
        """Slots, prompts, values, noise and padding."""
        return self.noises.stop + 1

    @property
    def shortest(self) -> int:
        """The first places and the slots."""
        return self.places + self.types

    def layout(self, example: Example) -> Layout:
        """Padding, then one document, whose questions are marked."""
        padding = example.tokens == self.noises.stop
        return Layout.numbered(torch.where(padding, -1, 0)).mark(example.mask)

    def logits(self, model: nn.Module, example: Example) -> Float[Tensor, "batch length vocab"]:
        """The output of a model that is told the layout, with the values alone to choose from."""
        return self.of_answers(model(example.tokens, layout=self.layout(example))[0])

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length)
        slots, prompts, answers = self._slots(rng, batch)
        front = slice(self.places - self.questions, self.places)
        tokens[:, : self.places] = self.noises.stop
        tokens[:, front], targets[:, front], mask[:, front] = prompts, answers, True
        self._scatter(rng, tokens[:, self.places :], slots)
        return tokens, targets, mask


@dataclass(frozen=True, kw_only=True)
class SlotText(SlotRecall):
    """Slot recall inside a language: the slots first, then a long stretch of noise that has an order, then the answers.

        s_{5,2} n s_{1,7} n … | n n n n … n | q_1 v_7 q_5 v_2 …          the loss is on every next token

    The noise is one first-order Markov chain, of which every other token of the beginning and all of the stretch are
    drawn; its transitions are fixed, their rows Dirichlet(0.3). `targets` are the next tokens; the mask is at the
    prompts. At the default sizes every answer lies at least 193 tokens after its slot.

    After the pattern of Zhang et al. 2023, arXiv 2310.12442: most tokens need a short span, few a long one.
    """

    types: int = 16
    noise: int = 16
    questions: int = 16
    within: int = 32
    title: ClassVar[str] = "slot recall inside a language"

    @property
    def shortest(self) -> int:
        """The slots with a token of noise each, and the prompts with their answers."""
        return 2 * (self.types + self.questions)

    def stretch(self, length: int | None = None) -> slice:
        """Where the targets are noise that follows noise."""
        length = self.length if length is None else length
        return slice(2 * self.types - 1, length - 2 * self.questions - 1)

    def is_noise(self, example: Example) -> Bool[Tensor, "batch length"]:
        """True at the places whose next token is of the long stretch of noise."""
        mask = torch.zeros_like(example.mask)
        mask[:, self.stretch(mask.shape[1])] = True
        return mask

    def logits(self, model: nn.Module, example: Example) -> Float[Tensor, "batch length vocab"]:
        """The output of a model on a batch, with every token to choose from."""
        return Task.logits(self, model, example)

    def loss(self, logits: Float[Tensor, "batch length vocab"], example: Example) -> Float[Tensor, ""]:
        """Cross entropy in nats of each token given those before it."""
        targets = example.targets.clone()
        targets[:, -1] = UNCOUNTED
        return cross_entropy(logits, targets)

    def nats(self, logits: Float[Tensor, "batch length vocab"], example: Example) -> float:
        """Cross entropy in nats of the long stretch of noise alone."""
        return float(cross_entropy(logits, torch.where(self.is_noise(example), example.targets, UNCOUNTED)))

    @property
    def entropy(self) -> float:
        """Nats that each further token of the noise brings, which no model's nats on much of it can be below."""
        chain = transitions(self.noise)
        share = np.linalg.matrix_power(chain, 1 << 12)[0]
        return float(-(share[:, None] * chain * np.log(np.maximum(chain, 1e-300))).sum())

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        tokens, targets, mask = empty_example(batch, length)
        slots, prompts, answers = self._slots(rng, batch)
        shown, end = 2 * self.types, length - 2 * self.questions
        noise = self.noises.start + walk(rng, transitions(self.noise), batch, end - self.types)
        tokens[:, 0:shown:2], tokens[:, 1:shown:2] = slots, noise[:, : self.types]
        tokens[:, shown:end] = noise[:, self.types :]
        tokens[:, end::2], tokens[:, end + 1 :: 2] = prompts, answers
        targets[:, :-1] = tokens[:, 1:]
        mask[:, end::2] = True
        return tokens, targets, mask


@cache
def transitions(states: int) -> np.ndarray:
    """The fixed chain of so many states: row i is the distribution of what follows i, Dirichlet(0.3)."""
    return np.random.default_rng(states).dirichlet(np.full(states, 0.3), states)


def walk(rng: np.random.Generator, chain: np.ndarray, batch: int, length: int) -> np.ndarray:
    """`batch` walks of a chain, [batch, length], each begun anywhere."""
    limits = chain.cumsum(axis=1)
    limits[:, -1] = 1.0  # where the sum of a row rounds to less
    state, draws = rng.integers(0, len(chain), batch), rng.random((length, batch, 1))
    steps = np.empty((batch, length), dtype=np.int64)
    for t, draw in enumerate(draws):
        steps[:, t] = state
        state = (draw >= limits[state]).sum(axis=1)
    return steps
