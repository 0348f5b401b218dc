"""Models as transformers keeps them, both ways: a folder with config.json and safetensors.

    model = lw.load("mamba-130m-hf")                         a folder that transformers wrote
    model = lw.load("SmolLM2-135M.gguf")                     a file of llama.cpp
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
from lengthwise.conversion.families import FAMILIES
from lengthwise.conversion.family import Family
from lengthwise.conversion.gguf_model import load_gguf
from lengthwise.errors import InputError, unknown
from lengthwise.models import loading
from lengthwise.models.files import read_json, read_tensors, write_json, write_tensors
from lengthwise.models.saving import CONFIG, WEIGHTS, own_tensors, save_tokenizer
from lengthwise.models.tokenizer import Tokenizer
from lengthwise.ops.pattern import Pattern
from lengthwise.positions.temperature import Temperature

INDEX = "model.safetensors.index.json"
"""Where the weights are in several files, says which are in which."""


def load(path: str | Path, parts: Mapping[str, type[SequenceModule]] | None = None) -> Any:
    """The model in a folder that `save` or transformers wrote, or in a GGUF file, with its tokenizer.

    parts: the classes of parts that aren't the library's own.
    Raises InputError where there is no complete model of a known kind.
    """
    if Path(path).is_file():
        return load_gguf(Path(path))
    config = Path(path) / CONFIG
    if config.is_file() and is_transformers(read_json(config)):
        return load_transformers(path)
    return loading.load(path, parts)


def is_transformers(description: Any) -> bool:
    """Whether a config.json is one of transformers."""
    return isinstance(description, dict) and "model_type" in description and "model" not in description


def load_transformers(path: str | Path) -> Any:
    """The model in a folder that transformers wrote, in float32.

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
    tensors, place = read_weights(folder)
    model = family.load(settings, str(folder / CONFIG), tensors, place)
    model.tokenizer = Tokenizer.beside(folder)  # type: ignore[assignment]
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
    """Write a model to a folder as transformers keeps it, weights first, and its tokenizer.

    Raises InputError for a model that transformers has no counterpart of.
    """
    family, folder = find_family(model), Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, family.write(model), {"format": "pt"})
    save_tokenizer(model, folder)
    write_json(folder / CONFIG, {**family.describe(model), **special_tokens(model)})


def special_tokens(model: nn.Module) -> dict[str, int]:
    """The tokens with a meaning of their own, by transformers' names."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None or not tokenizer.settings:
        return {}
    found = {f"{name}_id": tokenizer.special(name) for name in ("bos_token", "eos_token", "pad_token")}
    return {name: token for name, token in found.items() if token is not None}


def find_family(model: nn.Module) -> Family:
    """The family whose models are made of the same parts with the same shapes."""
    for family in FAMILIES.values():
        if family.has(model) and same(model, family):
            return family
    made = f"{type(model).__name__} made of {layers_of(model)}" if layers_of(model) else type(model).__name__
    raise InputError(f"transformers has no {made}; it has those of {', '.join(FAMILIES)}")


def layers_of(model: nn.Module) -> str:
    """The expressions that a model was made with, nothing for what is no model of ours."""
    config = getattr(model, "config", {})
    return " and ".join(str(config[name]) for name in ("layers", "encoder", "decoder") if name in config)


def same(model: nn.Module, family: Family) -> bool:
    """Whether the family's model with the settings of this one has the same parts, set in the same way."""
    try:
        with torch.device("meta"):
            twin = family.build(family.describe(model), "this model")
    except InputError:
        return False
    shapes = [{name: tensor.shape for name, tensor in own_tensors(m).items()} for m in (model, twin)]
    return shapes[0] == shapes[1] and [*map(setting, model.modules())] == [*map(setting, twin.modules())]


def setting(module: nn.Module) -> tuple[type, dict[str, Any]]:
    """What a module is, and all that it keeps beside weights and parts of its own: numbers, words, patterns and
    temperatures."""
    plain = (bool, int, float, str, tuple, Pattern, Temperature)
    kept = {name: value for name, value in vars(module).items() if isinstance(value, plain) and name != "training"}
    return type(module), kept
