"""Minimal pairs: which of two sequences that differ in one small place a model takes to be the likelier.

    log p(x) = Σ_{t=2..n} log p(x_t | x_<t)          accuracy = share of the pairs with log p(right) > log p(wrong)

The first token has nothing before it and isn't counted; no pair differs there. No training and no answer is asked for,
so that any language model can be scored. After the minimal pairs of BLiMP (Warstadt et al. 2020, arXiv 1912.00582),
made here from the text itself.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lengthwise.errors import InputError
from lengthwise.tasks.corpus import Corpus
from lengthwise.training.evaluation import evaluate_windows

BEFORE = 4
"""Tokens of a fragment before the first place in which it may be changed."""

FEWEST = 8
"""A share of fewer pairs than that says nothing."""

SAMPLED, STRETCHES = 2**20, 64
"""Of a long text so many tokens are searched, in so many stretches spread evenly over it."""

CLOSING = {b"("[0]: b")"[0], b"["[0]: b"]"[0], b"{"[0]: b"}"[0]}
"""The bracket that closes each."""

KEYWORDS = tuple(word for word in keyword.kwlist if len(word) >= 4)

Change = Callable[[np.ndarray, int], np.ndarray | None]
"""The wrong twin of a fragment that is changed at a place; None where that can't be."""


@torch.no_grad()
def log_probabilities(
    model: nn.Module, tokens: Int[Tensor, "rows length"], lengths: Sequence[int] | None = None, batch: int = 64
) -> Float[Tensor, " rows"]:
    """log p of each row in nats, without its first token. lengths: the tokens of each row; what follows is padding."""
    device = next(model.parameters()).device
    nats = evaluate_windows(model, tokens, batch=batch, device=device).double()
    if lengths is not None:
        counted = torch.arange(1, tokens.shape[1]) < torch.tensor(lengths)[:, None]
        nats = nats.masked_fill(~counted, 0.0)
    return -nats.sum(1)


@dataclass(frozen=True)
class MinimalPairs:
    """Pairs of sequences of equal length: one as it was found, and its wrong twin."""

    right: Int[Tensor, "pairs length"]
    wrong: Int[Tensor, "pairs length"]

    def __len__(self) -> int:
        return len(self.right)

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.right.shape[1]

    def outcomes(self, model: nn.Module) -> Bool[Tensor, " pairs"]:
        """Whether the right one is the likelier, for each pair."""
        return log_probabilities(model, self.right) > log_probabilities(model, self.wrong)

    def accuracy(self, model: nn.Module) -> float:
        """The share of the pairs of which the right one is the likelier. Guessing gives a half."""
        return self.outcomes(model).double().mean().item()


def code_pairs(corpus: Corpus, count: int = 300, length: int = 28, seed: int = 0) -> MinimalPairs:
    """Fragments of source text, of which one half have a wrong bracket in their twin and the other a wrong keyword.

    A closing bracket whose opening one is in the fragment is replaced by one of another kind; of a keyword of Python
    with at least four letters the two in the middle are swapped. Raises InputError for a corpus that isn't made of
    bytes, and where fewer than 4 of either are found.
    """
    _require_bytes(corpus)
    text = sample(corpus)
    source, rng = text.astype(np.uint8).tobytes(), np.random.default_rng(seed)
    brackets = [match.start() for match in re.finditer(rb"[)\]}]", source)]
    words = [
        match.start() + (len(match[0]) - 1) // 2
        for match in re.finditer(rb"\b(?:" + b"|".join(w.encode() for w in KEYWORDS) + rb")\b", source)
    ]
    kinds = list(CLOSING.values())

    def other_bracket(fragment: np.ndarray, at: int) -> np.ndarray | None:
        if _open_bracket(fragment[:at]) != fragment[at]:
            return None
        twin = fragment.copy()
        twin[at] = rng.choice([kind for kind in kinds if kind != fragment[at]])
        return twin

    half = count // 2
    parts = [
        _pairs(text, brackets, other_bracket, count - half, length, 1, rng, "closing brackets"),
        _pairs(text, words, _swapped, half, length, 6, rng, "keywords"),
    ]
    return MinimalPairs(torch.cat([p.right for p in parts]), torch.cat([p.wrong for p in parts]))


def swapped_pairs(corpus: Corpus, count: int = 300, length: int = 28, seed: int = 0) -> MinimalPairs:
    """Fragments of any text, in whose twin two different neighbours have changed places.

    Both have the same tokens, so nothing but their order tells them apart. Of bytes, letters a to z are swapped, inside
    a word. Raises InputError where fewer than 8 such places are found.
    """
    text = sample(corpus)
    differ = text[:-1] != text[1:]
    if corpus.vocab_size == 256:
        letter = ((text | 0x20) >= ord("a")) & ((text | 0x20) <= ord("z"))
        differ &= letter[:-1] & letter[1:]
    places = np.flatnonzero(differ).tolist()
    what = "words of the letters a to z" if corpus.vocab_size == 256 else "different neighbours"
    return _pairs(text, places, _swapped, count, length, 2, np.random.default_rng(seed), what)


def sample(corpus: Corpus, most: int = SAMPLED) -> np.ndarray:
    """A corpus as one row of tokens, or of a long one stretches spread evenly over it, `most` tokens in all."""
    if len(corpus) <= most:
        return corpus.cut(0, len(corpus)).numpy()
    return corpus.windows(STRETCHES, most // STRETCHES)[:, :-1].flatten().numpy()


def _require_bytes(corpus: Corpus) -> None:
    if corpus.vocab_size != 256:
        raise InputError(f"source text is read as bytes, but this corpus has a vocabulary of {corpus.vocab_size}")


def _swapped(fragment: np.ndarray, at: int) -> np.ndarray | None:
    if fragment[at] == fragment[at + 1]:
        return None
    twin = fragment.copy()
    twin[[at, at + 1]] = fragment[[at + 1, at]]
    return twin


def _open_bracket(before: np.ndarray) -> int | None:
    """The bracket that would close the innermost one that is open; None where there is none, or another was closed."""
    awaited: list[int] = []
    for byte in before.tolist():
        if byte in CLOSING:
            awaited.append(CLOSING[byte])
        elif byte in CLOSING.values() and awaited and awaited.pop() != byte:
            return None
    return awaited[-1] if awaited else None


def _pairs(
    text: np.ndarray,
    places: Sequence[int],
    change: Change,
    count: int,
    length: int,
    after: int,
    rng: np.random.Generator,
    what: str,
) -> MinimalPairs:
    """Up to `count` fragments of `length` tokens around random places; `after` of them are from the place on."""
    if length < BEFORE + after:
        raise InputError(f"a fragment must have at least {BEFORE + after} tokens, got {length}")
    right, wrong = [], []
    for place in rng.permutation(np.array(places, dtype=np.int64)).tolist():
        at = int(rng.integers(BEFORE, length - after + 1))
        begin = place - at
        if begin < 0 or begin + length > len(text):
            continue
        fragment = text[begin : begin + length]
        twin = change(fragment, at)
        if twin is not None:
            right.append(fragment)
            wrong.append(twin)
        if len(right) == count:
            break
    if len(right) < min(count, FEWEST // 2):
        raise InputError(f"the text has too few {what} to make minimal pairs of: {len(right)}")
    return MinimalPairs(torch.from_numpy(np.stack(right)).long(), torch.from_numpy(np.stack(wrong)).long())
