"""Choosing tokens, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from lengthwise.contract import StateTree
from lengthwise.errors import InputError
from lengthwise.generation.sampling import Prompt, Sampling
from lengthwise.generation.session import Session, encode


def generate(
    model: nn.Module,
    prompt: Prompt,
    *,
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    state: StateTree = None,
    source: Prompt | None = None,
) -> Iterator[int]:
    """The tokens that a language model continues a prompt with, each as soon as it is chosen.

    prompt: a text or its bytes, for a model with a tokenizer or of bytes, or tokens [length]; read in chunks, then one
    token at a time is read from the state. state: what `model` returned for tokens before the prompt, to go on from;
    it is not changed. source: what an encoder-decoder answers, in the place of a state; the prompt is what its answer
    begins with.
    seed: the same seed gives the same tokens; None draws a new one. For the rest see `Sampling`.

    Raises InputError for an empty prompt, a token outside the vocabulary, settings out of range, and a source for a
    model that reads none.
    """
    if source is not None:
        if state is not None:
            raise InputError("give a source or a state that has read one, not both")
        state = encode(model, [source])
    session = Session(model, seed=seed, state=state)
    session.read(prompt)
    return session.generate(max_tokens, Sampling(temperature, top_k, top_p))
