"""What a model costs against length: memory of training and reading, time to read and to decode, bytes of state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from lengthwise.contract import StateTree, state_nbytes
from lengthwise.errors import InputError
from lengthwise.measure import interleaved, peak_bytes
from lengthwise.models.language_model import LanguageModel
from lengthwise.reports.numbers import show_bytes, show_seconds
from lengthwise.reports.records import Measurement, Skipped
from lengthwise.training.fit import next_token_loss

CHUNK = 1024
"""Tokens read at a time when a state is prepared."""

BURST, ROUNDS = 8, 17
"""Tokens decoded in one timing, and timings of each model."""

Cost = Measurement | Skipped
Tick = Callable[[str], None]


@dataclass
class Pool:
    """Seconds that all candidates share, each asking for its part of what is left."""

    seconds: float
    waiting: int

    @property
    def part(self) -> float:
        """What the next candidate may take, when all that wait take as much."""
        return self.seconds / max(1, self.waiting)


@dataclass
class Allowance:
    """What measuring one candidate may take: its part of the seconds that are left, and bytes at any moment.

    The next length is tried only where those before say that it will fit. From one length alone, growth with the square
    is expected of a model whose state grows, and in proportion of others; from two, the growth that they show.
    """

    pool: Pool
    memory: int
    quadratic: bool
    history: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)

    def refusal(self, what: str, length: int) -> str:
        """Why `what` should not be tried at `length`; empty where it may."""
        left = self.pool.part
        known = self.history.get(what, [])
        if not known or left <= 0:
            return "" if left > 0 else "the time for measuring was used up"
        seconds, size = self._expected(known, length, 1), self._expected(known, length, 2)
        if seconds > left:
            return f"it would have taken about {show_seconds(seconds)} with {show_seconds(left)} left for measuring"
        if size > self.memory:
            return f"it would need about {show_bytes(size)} of memory, more than the {show_bytes(self.memory)} allowed"
        return ""

    def _expected(self, known: list[tuple[int, float, float]], length: int, index: int) -> float:
        power = 2.0 if self.quadratic else 1.0
        last = known[-1]
        if len(known) > 1 and known[-2][index] > 0:
            seen = math.log(last[index] / known[-2][index]) / math.log(last[0] / known[-2][0])
            power = min(2.5, max(1.0, seen + 0.15))
        return last[index] * (length / last[0]) ** power

    def note(self, what: str, length: int, seconds: float, size: float) -> None:
        """Remember what a length took."""
        self.pool.seconds -= seconds
        self.history.setdefault(what, []).append((length, seconds, size))


def memory_lengths(length: int) -> list[int]:
    """The lengths at which memory is measured: the trained one to 16 times that."""
    return [length * 2**k for k in range(5)]


def measure_memory(
    models: Mapping[str, LanguageModel],
    text: Int[Tensor, " tokens"],
    lengths: Sequence[int],
    allowances: Mapping[str, Allowance],
    tick: Tick,
) -> Iterator[Cost]:
    """Peak bytes of a training step and of reading a prompt at once, for one row, the shortest length first."""
    works = {"train_peak_bytes": training_step, "prefill_peak_bytes": read_at_once}
    ended: set[tuple[str, str]] = set()
    for length in lengths:
        row = text[: length + 1][None]
        for measure, work in works.items():
            active = [name for name in models if (measure, name) not in ended]
            for place, name in enumerate(active):
                model = models[name]
                allowances[name].pool.waiting = len(active) - place
                reason = allowances[name].refusal(measure, length)
                if reason:
                    ended.add((measure, name))
                    yield Skipped(name, measure, length, reason)
                    continue
                tick(f"memory of {name} at {length} tokens")
                begin = time.perf_counter()
                try:
                    size = peak_bytes(lambda work=work, model=model, row=row: work(model, row))  # type: ignore[misc]
                except InputError as error:  # some models are made for a longest length
                    ended.add((measure, name))
                    yield Skipped(name, measure, length, str(error))
                    continue
                allowances[name].note(measure, length, time.perf_counter() - begin, size)
                yield Measurement(name, 0, measure, float(size), length)


def training_step(model: LanguageModel, row: Int[Tensor, "one tokens"]) -> None:
    """Forward and backward."""
    model.train()
    model.zero_grad(set_to_none=True)
    next_token_loss(model, row).backward()
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def read_at_once(model: LanguageModel, row: Int[Tensor, "one tokens"]) -> StateTree:
    """The state after a whole prompt, read in one call."""
    model.eval()
    return model.hidden(row[:, :-1])[1]


@torch.no_grad()
def read_on(model: LanguageModel, tokens: Int[Tensor, " tokens"], state: StateTree) -> StateTree:
    """The state after more text, read in chunks."""
    for chunk in tokens.split(CHUNK):
        _, state = model.hidden(chunk[None], state)
    return state


class Decoder:
    """A model that goes on from a state, one token after the other, always with its likeliest token."""

    def __init__(self, model: LanguageModel, state: StateTree, token: int):
        self.model, self.state = model, state
        self.token = torch.tensor([[token]])

    @torch.no_grad()
    def __call__(self) -> None:
        """Decode a burst of tokens."""
        for _ in range(BURST):
            logits, self.state = self.model(self.token, self.state)
            self.token = logits[:, -1].argmax(-1, keepdim=True)


def measure_decoding(
    models: Mapping[str, LanguageModel],
    text: Int[Tensor, " tokens"],
    lengths: Sequence[int],
    allowances: Mapping[str, Allowance],
    tick: Tick,
) -> Iterator[Cost]:
    """Seconds to read a prompt, bytes of its state, and seconds per decoded token, at each context.

    The state is carried on from one context to the next. Candidates decode in turn, so that a drift of the machine's
    speed reaches all of them.
    """
    states: dict[str, StateTree] = {}
    reading = dict.fromkeys(models, 0.0)
    read = 0
    for model in models.values():
        with suppress(InputError):  # some models are made for a longest length, which is found out below
            read_on(model.eval(), text[: 2 * CHUNK], None)
    for length in sorted(lengths):
        active = [name for name in models if name in states or not read]
        for place, name in enumerate(active):
            model = models[name]
            allowances[name].pool.waiting = len(active) - place
            reason = allowances[name].refusal("decoding", length)
            if reason:
                states.pop(name, None)
                yield Skipped(name, "decode_seconds", length, reason)
                continue
            tick(f"{name} reads {length} tokens")
            begin = time.perf_counter()
            try:
                states[name] = read_on(model, text[read:length], states.get(name))
                took = time.perf_counter() - begin
                read_on(model, text[: ROUNDS * BURST], states[name])  # as far as decoding will go
            except InputError as error:
                states.pop(name, None)
                yield Skipped(name, "decode_seconds", length, str(error))
                continue
            reading[name] += took
            allowances[name].note("decoding", length, took, state_nbytes(states[name]))
            yield Measurement(name, 0, "prefill_seconds", reading[name], length)
            yield Measurement(name, 0, "state_bytes", float(state_nbytes(states[name])), length)
        read = length
        tick(f"decoding after {length} tokens")
        decoders = {name: Decoder(models[name], state, int(text[length - 1])) for name, state in states.items()}
        times = interleaved(decoders, repeats=ROUNDS - 2, warmup=2, limit=4.0)
        for name, seconds in times.items():
            yield Measurement(name, 0, "decode_seconds", seconds / BURST, length)


def long_text(tokens: Int[Tensor, " tokens"], length: int) -> Int[Tensor, " length"]:
    """So many tokens of a text, which begins again where it ends."""
    return tokens.repeat(-(-length // max(1, len(tokens))))[:length]
