"""Needles in a haystack: facts told at known places of a long text, and asked for when it has been read so far.

    … The secret number of amber is 58213. … (more text) …          The secret number of amber is → 58213

The text is read once. At each of several lengths the state is kept as it is and every question about what has been told
is read from it, each by itself, so that all lengths and all distances take one pass. The nats of the last tokens of a
long text don't show whether anything far back is found again; this does. After RULER's needles with many keys (Hsieh et
al. 2024, arXiv 2404.06654).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.errors import InputError
from lengthwise.training.evaluation import CHUNK
from lengthwise.training.fit import at_least_float32

WORDS = (
    "amber apple arrow basket beach bridge button candle castle cherry cloud copper desert dragon eagle engine falcon"
    " feather forest garden glacier guitar hammer harbor island jacket kettle ladder lantern lemon marble meadow mirror"
    " mountain needle ocean orange paper pencil pepper piano pillow planet pocket rabbit ribbon river rocket saddle"
    " shadow silver spider stone summer ticket tiger tunnel turtle valley velvet violin walnut window winter"
)
NAMES = tuple(WORDS.split())
"""What the numbers belong to, each once in a text."""

DIGITS = 5
"""Of a number."""


@dataclass(frozen=True)
class Fact:
    """What is told up to `end` in the text, how it is asked for, and the tokens of the answer."""

    end: int
    question: Int[Tensor, " tokens"]
    answer: Int[Tensor, " answer"]


@dataclass(frozen=True)
class Needles:
    """A text and the facts in it."""

    text: Int[Tensor, " tokens"]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Recalled:
    """asked: how many facts. share: of them, whose answers have the likeliest token at every place. nats: per token of
    their answers."""

    asked: int
    share: float
    nats: float


def needles(
    haystack: Int[Tensor, " tokens"], encode: Callable[[str], Sequence[int]], *, every: int = 512, seed: int = 0
) -> Needles:
    """A fact at a random place of every `every` tokens of the haystack, in the place of what stands there.

    encode: a tokenizer's. A question has the tokens that the fact begins with. Raises InputError for a haystack of less
    than `every` tokens, more facts than names, and facts longer than `every`.
    """
    rng, count = np.random.default_rng(seed), len(haystack) // every
    if not 1 <= count <= len(NAMES):
        raise InputError(f"{len(haystack)} tokens with a fact in every {every} have {count}; 1 to {len(NAMES)} can be")
    text, facts = haystack.clone(), []
    for number, name in enumerate(rng.permutation(NAMES)[:count].tolist()):
        value = "".join(map(str, rng.integers(10, size=DIGITS)))
        question, answer, end = (
            torch.tensor(encode(part)) for part in (f"\nThe secret number of {name} is", f" {value}", ".\n")
        )
        told = torch.cat([question, answer, end])
        if len(told) > every:
            raise InputError(f"a fact has {len(told)} tokens, which is more than the {every} that it may take")
        begin = number * every + int(rng.integers(every - len(told) + 1))
        text[begin : begin + len(told)] = told
        facts.append(Fact(begin + len(told), question, answer))
    return Needles(text, tuple(facts))


@torch.no_grad()
def recall(model: nn.Module, given: Needles, lengths: Sequence[int], chunk: int = CHUNK) -> dict[int, Recalled]:
    """What a model knows of the facts after each of these lengths, of those that it has read whole.

    Raises InputError for a length that is longer than the text or holds no fact.
    """
    for length in lengths:
        if length > len(given.text) or length < given.facts[0].end:
            raise InputError(f"a length must be from {given.facts[0].end} to {len(given.text)} tokens, got {length}")
    state, read, found = None, 0, {}
    for length in sorted(set(lengths)):
        while read < length:
            piece = given.text[None, read : min(read + chunk, length)]
            _, state = model(piece, state)
            read += piece.shape[1]
        scores = []
        for fact in (one for one in given.facts if one.end <= length):
            logits, _ = model(torch.cat([fact.question, fact.answer[:-1]])[None], state)
            logits = at_least_float32(logits[0, -len(fact.answer) :])
            right = bool((logits.argmax(-1) == fact.answer).all())
            scores.append((right, float(functional.cross_entropy(logits, fact.answer))))
        share, nats = np.mean(scores, axis=0).tolist()
        found[length] = Recalled(len(scores), share, nats)
    return found
