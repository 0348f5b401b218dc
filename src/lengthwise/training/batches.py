"""What one optimiser step reads, and how it is divided among processes and accumulated parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lengthwise.contract import Layout, StateTree
from lengthwise.errors import InputError
from lengthwise.training.fit import UNCOUNTED, cross_entropy


@runtime_checkable
class Data(Protocol):
    """What training asks of a corpus: `lengthwise.tasks.corpus.Corpus` is one. Batches depend on the seed and the
    number of the step alone, so a run can go on at any step."""

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text that a token stands for on average."""

    def __len__(self) -> int: ...

    def batches(self, length: int, batch: int, seed: int = 0, *, start: int = 0) -> Iterator[Tensor]:
        """Windows [batch, length + 1] from random places."""

    def streams(self, length: int, batch: int, *, start: int = 0) -> Iterator[Any]:
        """Batches in which each row goes on where it ended, with layout and mask."""

    def packed(self, length: int, batch: int, seed: int = 0, *, packing: str = "cut", start: int = 0) -> Iterator[Any]:
        """Rows of several documents, with layout and mask."""

    def windows(self, count: int, length: int) -> Tensor:
        """Evenly spaced windows [count, length + 1]."""


@dataclass(frozen=True)
class Rows:
    """Rows that a model reads, the token to predict at each place, and the places that count (all without a mask)."""

    inputs: Int[Tensor, "batch length"]
    targets: Int[Tensor, "batch length"]
    layout: Layout | None = None
    mask: Bool[Tensor, "batch length"] | None = None

    @property
    def count(self) -> int:
        """Tokens to predict."""
        return self.targets.numel() if self.mask is None else int(self.mask.sum())

    @property
    def counted(self) -> Int[Tensor, "batch length"]:
        """The targets, `UNCOUNTED` at places that don't count."""
        return self.targets if self.mask is None else self.targets.masked_fill(~self.mask, UNCOUNTED)

    def divide(self, parts: int) -> list[Rows]:
        """The rows in equal parts, in order."""
        size = len(self.inputs) // parts
        return [self.slice(i * size, (i + 1) * size) for i in range(parts)]

    def slice(self, begin: int, end: int) -> Rows:
        """The rows from `begin` to `end`."""
        layout = self.layout and self.layout.select(torch.arange(begin, end))
        mask = None if self.mask is None else self.mask[begin:end]
        return Rows(self.inputs[begin:end], self.targets[begin:end], layout, mask)

    def to(self, device: torch.device) -> Rows:
        """The rows on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Rows(self.inputs.to(device), self.targets.to(device), self.layout and self.layout.to(device), mask)

    def loss(self, model: nn.Module, state: StateTree) -> tuple[Float[Tensor, ""], StateTree]:
        """Summed cross-entropy in nats of the tokens that count, and the state after the rows."""
        logits, state = model(self.inputs, state, self.layout)
        return cross_entropy(logits, self.counted, reduction="sum"), state


def rows_of_steps(data: Data, settings: Mapping[str, Any], start: int) -> Iterator[Rows]:
    """The rows of every step from `start` on, over all processes: streams, packed documents or random windows."""
    length, batch, seed = settings["length"], settings["batch"], settings["seed"]
    if settings["carry_state"] or settings["packing"] != "none":
        if settings["carry_state"]:
            batches = data.streams(length, batch, start=start)
        else:
            batches = data.packed(length, batch, seed, packing=settings["packing"], start=start)
        for b in batches:
            yield Rows(b.inputs, b.targets, b.layout, b.mask)
    else:
        for tokens in data.batches(length, batch, seed, start=start):
            yield Rows(tokens[:, :-1], tokens[:, 1:])


def check_division(batch: int, processes: int, accumulate: int) -> None:
    """Raise InputError unless the rows of a step divide evenly."""
    if batch < 1 or accumulate < 1:
        raise InputError(f"batch and accumulate must be at least 1, got {batch} and {accumulate}")
    if batch % (processes * accumulate):
        raise InputError(
            f"batch {batch} doesn't divide among {processes} process(es) with accumulate {accumulate}; "
            f"make it a multiple of {processes * accumulate}"
        )
