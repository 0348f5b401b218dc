"""lengthwise: sequence models that have to be long, as parts under one contract, measured on the same work.

The names below are loaded when they are first used, so that `lengthwise --help` doesn't wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lengthwise import laws
    from lengthwise.contract import Layout, SequenceModule, State
    from lengthwise.conversion import load
    from lengthwise.errors import InputError
    from lengthwise.generation.sample import generate
    from lengthwise.models import (
        Classifier,
        Encoder,
        EncoderDecoder,
        LanguageModel,
        MaskedLanguageModel,
        build,
        load_state,
        save_state,
    )
    from lengthwise.systems import systems

__version__ = "0.1.0"

PUBLIC = {
    "Classifier": "lengthwise.models",
    "Encoder": "lengthwise.models",
    "EncoderDecoder": "lengthwise.models",
    "InputError": "lengthwise.errors",
    "LanguageModel": "lengthwise.models",
    "Layout": "lengthwise.contract",
    "MaskedLanguageModel": "lengthwise.models",
    "SequenceModule": "lengthwise.contract",
    "State": "lengthwise.contract",
    "build": "lengthwise.models",
    "generate": "lengthwise.generation.sample",
    "laws": "lengthwise.laws",
    "load": "lengthwise.conversion",
    "load_state": "lengthwise.models",
    "save_state": "lengthwise.models",
    "systems": "lengthwise.systems",
}

__all__ = [
    "Classifier",
    "Encoder",
    "EncoderDecoder",
    "InputError",
    "LanguageModel",
    "Layout",
    "MaskedLanguageModel",
    "SequenceModule",
    "State",
    "build",
    "generate",
    "laws",
    "load",
    "load_state",
    "save_state",
    "systems",
]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'lengthwise' has no attribute {name!r}")
    module = importlib.import_module(PUBLIC[name])
    return module if name in ("laws", "systems") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
