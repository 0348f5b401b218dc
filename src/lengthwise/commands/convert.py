"""What the verb convert does: a model of transformers or llama.cpp as one of ours, and back."""

from __future__ import annotations

from pathlib import Path

from lengthwise.conversion import load, save_transformers
from lengthwise.conversion.huggingface import is_transformers, layers_of
from lengthwise.errors import InputError
from lengthwise.models.files import read_json
from lengthwise.models.saving import CONFIG, save_model
from lengthwise.training.checkpoint import find_checkpoint


def convert(source: Path, destination: Path) -> int:
    """Write the model in `source` to `destination` in the other form, its tokenizer with it."""
    folder = find_checkpoint(source)
    if (destination / CONFIG).exists():
        raise InputError(f"{str(destination)!r} holds a model already; name a new folder")
    theirs = folder.is_file() or is_transformers(read_json(folder / CONFIG))
    model = load(folder)
    if theirs:
        save_model(model, destination)
    else:
        save_transformers(model, destination)
    written = "lengthwise" if theirs else "transformers"
    numbers = sum(p.numel() for p in model.parameters())
    print(f"{destination}: {layers_of(model)}, {numbers / 1e6:.1f}M parameters, as {written} reads it")
    return 0
