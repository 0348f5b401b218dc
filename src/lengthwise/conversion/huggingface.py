"""Models as transformers keeps them, both ways: a folder with config.json and safetensors.

    model = lw.load("mamba-130m-hf")                         a folder that transformers wrote
    lengthwise.conversion.save_transformers(model, "out")    one that transformers reads

Nothing of transformers itself is needed. Only safetensors and JSON are read, so that a stranger's file never runs code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lengthwise.contract import SequenceModule
from lengthwise.conversion.families import FAMILIES, Family
from lengthwise.errors import InputError, unknown
from lengthwise.models import loading
from lengthwise.models.files import read_json, read_tensors, write_json, write_tensors
from lengthwise.models.language_model import LanguageModel
from lengthwise.models.saving import CONFIG, WEIGHTS, load_weights, own_tensors

INDEX = "model.safetensors.index.json"
"""Where the weights are in several files, says which are in which."""


def load(path: str | Path, parts: Mapping[str, type[SequenceModule]] | None = None) -> Any:
    """The model in a folder that `save` or transformers wrote.

    parts: the classes of parts that aren't the library's own.
    Raises InputError where the folder holds no complete model of a known kind.
    """
    config = Path(path) / CONFIG
    if config.is_file() and is_transformers(read_json(config)):
        return load_transformers(path)
    return loading.load(path, parts)


def is_transformers(description: Any) -> bool:
    """Whether a config.json is one of transformers."""
    return isinstance(description, dict) and "model_type" in description and "model" not in description


def load_transformers(path: str | Path) -> LanguageModel:
    """The language model in a folder that transformers wrote, in float32.

    Raises InputError for a kind of model or settings that lengthwise has no counterpart of, and for weights that are
    cut short, missing or of another model.
    """
    folder = Path(path)
    settings = read_json(folder / CONFIG)
    if not is_transformers(settings):
        raise InputError(f"{folder / CONFIG} is no configuration of transformers: it names no model_type")
    if settings["model_type"] not in FAMILIES:
        raise unknown("model_type of transformers", str(settings["model_type"]), FAMILIES)
    family = FAMILIES[settings["model_type"]]
    model = LanguageModel(**family.arguments(settings, str(folder / CONFIG)))
    tensors, source = read_weights(folder)
    names = {theirs: ours for ours, theirs in family.names(model).items()}
    expected = own_tensors(model)
    found = {}
    for name, tensor in tensors.items():
        ours = names.get(name, name)
        if ours == "head.weight" and ours not in expected:
            continue  # tied: the same numbers as the embedding's
        # Vectors may be kept with dimensions of size 1 before them.
        vector = ours in expected and expected[ours].ndim == 1 and tensor.shape[:-1].numel() == 1
        found[ours] = tensor.flatten() if vector else tensor
    load_weights(model, found, source)
    return model


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """All weights of a folder, in one file or several, and the file that names them."""
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file() and any(folder.glob("pytorch_model*.bin")):
            raise InputError(
                f"{folder} holds its weights as a pickle, which could run code; save them again with transformers'"
                " save_pretrained, which writes safetensors"
            )
        return read_tensors(folder / WEIGHTS)[0], folder / WEIGHTS
    index = read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise InputError(f"{folder / INDEX} doesn't say which weights are in which file")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        tensors |= read_tensors(folder / Path(file).name)[0]
    return tensors, folder / INDEX


def save_transformers(model: nn.Module, path: str | Path) -> None:
    """Write a language model to a folder as transformers keeps it, weights first.

    Raises InputError for a model that transformers has no counterpart of.
    """
    if not isinstance(model, LanguageModel):
        raise InputError(f"only a LanguageModel can be written for transformers, got {type(model).__name__}")
    family, folder = find_family(model), Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    names = family.names(model)
    tensors = {
        names[name]: tensor.reshape(1, 1, -1) if names[name].rpartition(".")[2] in family.lifted else tensor
        for name, tensor in own_tensors(model).items()
    }
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    kind = {"model_type": family.model_type, "architectures": [family.architecture], "dtype": dtype_name(model)}
    write_json(folder / CONFIG, {**kind, **family.settings(model)})


def dtype_name(model: nn.Module) -> str:
    """The dtype of the weights, as "float32"."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def find_family(model: LanguageModel) -> Family:
    """The family whose models are made of the same parts with the same shapes."""
    for family in FAMILIES.values():
        if family.has(model) and same(model, family.arguments(family.settings(model), "this model")):
            return family
    layers = model.config["layers"]
    raise InputError(f"transformers has no model made of {layers}; it has those of {', '.join(FAMILIES)}")


def same(model: LanguageModel, arguments: Mapping[str, Any]) -> bool:
    """Whether a model with these arguments has the same parts and shapes."""
    with torch.device("meta"):
        twin = LanguageModel(**arguments)
    kinds = [[type(module) for module in m.modules()] for m in (model, twin)]
    shapes = [{name: tensor.shape for name, tensor in own_tensors(m).items()} for m in (model, twin)]
    return kinds[0] == kinds[1] and shapes[0] == shapes[1]
