"""Words that come again: how well a model predicts a word whose last showing lies some way back in its context.

    … w … (near to far bytes) … w          nats of the bytes of the second w, from its third on, given all before them

The first two bytes tell which word it is going to be; the rest are cheap for a model that looks back as far as the last
showing, and have to be guessed by one that doesn't. In source text the words are identifiers.
"""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lengthwise.errors import InputError
from lengthwise.tasks.corpus import Corpus
from lengthwise.tasks.minimal_pairs import FEWEST, sample
from lengthwise.training.evaluation import evaluate_windows

CUE = 2
"""Bytes of a word that aren't scored."""

SHORTEST = 6
"""Letters that a word must have."""


@dataclass(frozen=True)
class RepeatedWords:
    """Stretches of text that end with a word that has stood in them before. mask: True at the bytes that are scored."""

    windows: Int[Tensor, "words length"]
    mask: Bool[Tensor, "words length"]

    def __len__(self) -> int:
        return len(self.windows)

    @torch.no_grad()
    def losses(self, model: nn.Module, span: int | None = None, batch: int = 16) -> Float[Tensor, " words"]:
        """For each word its nats over the mean number of scored bytes of a word, so that their mean is nats per byte.

        span: the model sees the last `span` bytes of each stretch alone, those of the word among them.
        """
        span = self.windows.shape[1] if span is None else min(span, self.windows.shape[1])
        device = next(model.parameters()).device
        mask = self.mask[:, -span:][:, 1:]
        nats = evaluate_windows(model, self.windows[:, -span:], batch=batch, device=device).double()
        return (nats * mask).sum(1) / (mask.sum() / len(mask))

    def nll(self, model: nn.Module, span: int | None = None) -> float:
        """Nats per byte."""
        return self.losses(model, span).mean().item()


def repeated_words(
    corpus: Corpus, count: int = 400, length: int = 512, near: int = 64, far: int = 400, longest: int = 24
) -> RepeatedWords:
    """`count` words, spread evenly over the text, of 6 to `longest` letters, digits and underscores.

    near, far: bounds of the distance in bytes from the beginning of a word's last showing to its own. length: bytes of
    a stretch. Keywords of Python are left out. Raises InputError for a corpus that isn't made of bytes, for distances
    that don't fit, and where fewer than 8 words are found.
    """
    if corpus.vocab_size != 256:
        raise InputError(f"words are found in bytes, but this corpus has a vocabulary of {corpus.vocab_size}")
    if not 1 <= near <= far or far + longest > length or longest < SHORTEST:
        raise InputError(f"words of up to {longest} bytes, {near} to {far} bytes back, don't fit in {length} bytes")
    text = sample(corpus)
    ends: list[tuple[int, int]] = []
    last: dict[bytes, int] = {}
    left_out = {word.encode() for word in keyword.kwlist}
    for match in re.finditer(rb"[A-Za-z_]\w*", text.astype(np.uint8).tobytes()):
        word, begin = match[0], match.start()
        if SHORTEST <= len(word) <= longest and word not in left_out:
            if near <= begin - last.get(word, begin) <= far and match.end() >= length:
                ends.append((match.end(), len(word)))
            last[word] = begin
    if len(ends) < FEWEST:
        raise InputError(f"the text has too few words that come again {near} to {far} bytes later: {len(ends)}")
    places = np.linspace(0, len(ends) - 1, min(count, len(ends))).astype(int)
    chosen = [ends[i] for i in places]
    windows = torch.from_numpy(np.stack([text[end - length : end] for end, _ in chosen])).long()
    scored = torch.tensor([size - CUE for _, size in chosen])
    return RepeatedWords(windows, torch.arange(length) >= length - scored[:, None])
