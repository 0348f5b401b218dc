"""What a synthetic task is: examples of any length from a seed, a loss, a metric and a chance level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lengthwise.errors import InputError


@dataclass(frozen=True)
class Example:
    """A batch of a task: where `mask` holds, the output at a token has to be `targets`.

    tokens, targets: [batch, length]. mask: [batch, length].
    """

    tokens: Int[Tensor, "batch length"]
    targets: Int[Tensor, "batch length"]
    mask: Bool[Tensor, "batch length"]

    def to(self, device: torch.device | str) -> Example:
        """The batch on another device."""
        return Example(self.tokens.to(device), self.targets.to(device), self.mask.to(device))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task that generates its examples. Its fields are its sizes; `length` is the tokens of one example.

    The same seed gives the same batch, on every machine.
    """

    length: int
    """Tokens of an example where `batch` isn't told another length."""

    title: ClassVar[str]

    @property
    def vocab_size(self) -> int:
        """Number of different tokens, and of the outputs a model must have."""
        raise NotImplementedError

    @property
    def answers(self) -> range:
        """The tokens that can be asked for."""
        raise NotImplementedError

    @property
    def shortest(self) -> int:
        """The least length at which an example has room."""
        raise NotImplementedError

    @property
    def chance(self) -> float:
        """Accuracy of guessing evenly among the answers."""
        return 1 / len(self.answers)

    def _generate(self, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, ...]:
        """tokens, targets and mask, each [batch, length]."""
        raise NotImplementedError

    def batch(self, batch: int, *, length: int | None = None, seed: int | Sequence[int] = 0) -> Example:
        """`batch` examples of `length` tokens."""
        length = self.length if length is None else length
        if batch < 1:
            raise InputError(f"batch must be at least 1, got {batch}")
        if length < self.shortest:
            raise InputError(f"{self.title} needs a length of at least {self.shortest}, got {length}")
        tokens, targets, mask = self._generate(np.random.default_rng(seed), batch, length)
        return Example(_tensor(tokens, np.int64), _tensor(targets, np.int64), _tensor(mask, np.bool_))

    def batches(self, batch: int, *, length: int | None = None, seed: int = 0, start: int = 0) -> Iterator[Example]:
        """Endless fresh batches from step `start` on; the batch of a step depends on seed and step alone."""
        step = start
        while True:
            yield self.batch(batch, length=length, seed=(seed, step))
            step += 1

    def batches_of_lengths(self, batch: int, lengths: range, seed: int = 0) -> Iterator[Example]:
        """Endless fresh batches, each of one length, drawn evenly from `lengths`."""
        generator = torch.Generator().manual_seed(seed)
        step = 0
        while True:
            length = lengths[int(torch.randint(len(lengths), (), generator=generator))]
            yield self.batch(batch, length=length, seed=(seed, step))
            step += 1

    def loss(self, logits: Float[Tensor, "batch length vocab"], example: Example) -> Float[Tensor, ""]:
        """Cross entropy in nats, averaged over what is asked."""
        return F.cross_entropy(logits[example.mask].float(), example.targets[example.mask])

    def metric(self, logits: Float[Tensor, "batch length vocab"], example: Example) -> float:
        """Share of the asked tokens that the largest logit gets right."""
        return (logits.argmax(-1) == example.targets)[example.mask].float().mean().item()

    def exact(self, logits: Float[Tensor, "batch length vocab"], example: Example) -> float:
        """Share of the rows in which everything asked is right."""
        right = (logits.argmax(-1) == example.targets) | ~example.mask
        return right.all(dim=1).float().mean().item()

    def logits(self, model: nn.Module, example: Example) -> Float[Tensor, "batch length vocab"]:
        """The output of a model on a batch."""
        return model(example.tokens)[0]

    def objective(self, model: nn.Module, example: Example) -> Float[Tensor, ""]:
        """The loss of a model on a batch, in the form that `training.fit` takes."""
        return self.loss(self.logits(model, example), example)

    @torch.no_grad()
    def score(
        self, model: nn.Module, *, examples: int = 256, length: int | None = None, seed: int = 1_000_003
    ) -> float:
        """The metric of a model on fresh examples, of a seed that training doesn't use."""
        example = self.batch(examples, length=length, seed=seed)
        return self.metric(self.logits(model, example), example)


def _tensor(values: np.ndarray, dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=dtype))


def require_at_least(**sizes: tuple[int, int]) -> None:
    """Raise an InputError for the first size, given as (value, least), that is too small."""
    for name, (value, least) in sizes.items():
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")


def distinct(rng: np.random.Generator, batch: int, count: int, among: int) -> np.ndarray:
    """In each of `batch` rows, `count` different numbers below `among`, in random order."""
    return rng.random((batch, among)).argsort(axis=1)[:, :count]


def empty_example(batch: int, length: int, fill: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens and targets full of `fill`, and a mask that asks for nothing."""
    shape = (batch, length)
    return np.full(shape, fill), np.full(shape, fill), np.zeros(shape, dtype=bool)
