"""Models from files that `save` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lengthwise.contract import SequenceModule
from lengthwise.errors import InputError, unknown
from lengthwise.models.encoder import Classifier, Encoder
from lengthwise.models.encoder_decoder import EncoderDecoder
from lengthwise.models.files import read_json, read_tensors
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.masked_language_model import MaskedLanguageModel
from lengthwise.models.saving import CONFIG, WEIGHTS, load_weights, require_described
from lengthwise.models.tokenizer import Tokenizer

MODELS: dict[str, type[nn.Module]] = {
    "LanguageModel": LanguageModel,
    "Encoder": Encoder,
    "Classifier": Classifier,
    "MaskedLanguageModel": MaskedLanguageModel,
    "EncoderDecoder": EncoderDecoder,
}
"""The models that a file can name."""


def build_model(description: Any, parts: Mapping[str, type[SequenceModule]] | None = None) -> nn.Module:
    """The model that a configuration describes, with fresh weights."""
    if not isinstance(description, dict) or not isinstance(description.get("config"), dict):
        raise InputError('a model\'s configuration must hold "model" and "config"; is this a lengthwise checkpoint?')
    name = str(description.get("model"))
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    try:
        return MODELS[name](**description["config"], parts=parts)
    except TypeError as error:
        raise InputError(f"the configuration doesn't fit {name}: {error}") from error


def load(path: str | Path, parts: Mapping[str, type[SequenceModule]] | None = None) -> Any:
    """The model in a folder that `save` wrote. `parts` gives the classes of parts that aren't the library's own.

    The model is made without memory first, so that a stranger's file can't ask for more than it has weights for. Raises
    InputError where the folder holds no complete model of that kind.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"there is no checkpoint folder {folder}")
    description = read_json(folder / CONFIG)
    tensors, _ = read_tensors(folder / WEIGHTS)
    require_described(lambda: build_model(description, parts), tensors, str(folder / CONFIG), folder / WEIGHTS)
    model = build_model(description, parts)
    load_weights(model, tensors, folder / WEIGHTS)
    model.tokenizer = Tokenizer.beside(folder)  # type: ignore[assignment]
    return model
