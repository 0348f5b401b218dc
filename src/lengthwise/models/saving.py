"""Models and states as files: safetensors and JSON only, so that loading a stranger's file never runs code."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lengthwise.contract import SequenceModule, State, StateTree
from lengthwise.errors import InputError, unknown
from lengthwise.models.encoder import Classifier, Encoder
from lengthwise.models.language_model import LanguageModel

MODELS: dict[str, type[nn.Module]] = {"LanguageModel": LanguageModel, "Encoder": Encoder, "Classifier": Classifier}
"""The models that a file can name."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, partial, dict(metadata or {}))
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(f"{path} can't be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is cut short or no safetensors file ({error})") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is cut short or no JSON file ({error})") from error


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a model once, by the first of its names: layers can share a position or an output matrix."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def save_model(model: nn.Module, path: str | Path) -> None:
    """Write a model to a folder, weights first, so that a folder with a configuration is complete."""
    if type(model).__name__ not in MODELS:
        raise InputError(f"only {', '.join(MODELS)} can be saved, got {type(model).__name__}")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, own_tensors(model))
    write_json(folder / CONFIG, {"model": type(model).__name__, "config": model.config})


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


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into a model, each of which must be there with its shape."""
    expected = own_tensors(model)
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which the model lacks"
        raise InputError(
            f"{source} belongs to another model: it {what} ({len(missing)} missing, {len(extra)} too many)"
        )
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            given, wanted = list(tensors[name].shape), list(tensor.shape)
            raise InputError(f"{source} belongs to another model: {name!r} is {given} and should be {wanted}")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])


def load(path: str | Path, parts: Mapping[str, type[SequenceModule]] | None = None) -> Any:
    """The model in a folder that `save` wrote. `parts` gives the classes of parts that aren't the library's own.

    Raises InputError where the folder holds no complete model of that kind.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"there is no checkpoint folder {folder}")
    model = build_model(read_json(folder / CONFIG), parts)
    tensors, _ = read_tensors(folder / WEIGHTS)
    load_weights(model, tensors, folder / WEIGHTS)
    return model


def encode_state(state: StateTree, tensors: dict[str, Tensor]) -> Any:
    """The structure of a state as JSON, its tensors moved to `tensors`."""
    if isinstance(state, Tensor):
        tensors[f"t{len(tensors)}"] = state
        return {"tensor": f"t{len(tensors) - 1}"}
    if isinstance(state, tuple):
        return {"tuple": [encode_state(item, tensors) for item in state]}
    if isinstance(state, State):
        fields = dataclasses.fields(state)  # type: ignore[arg-type]
        return {
            "state": type(state).__name__,
            "fields": {f.name: encode_state(getattr(state, f.name), tensors) for f in fields},
        }
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    raise InputError(f"a state is made of tensors, numbers, states and tuples, got {type(state).__name__}")


def state_classes(base: type[State] = State) -> Iterator[type[State]]:
    """Every kind of state that is known."""
    for cls in base.__subclasses__():
        yield cls
        yield from state_classes(cls)


def decode_state(value: Any, tensors: Mapping[str, Tensor]) -> StateTree:
    """The state that `encode_state` described."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(decode_state(item, tensors) for item in value["tuple"])
    known = {cls.__name__: cls for cls in state_classes()}
    if value["state"] not in known:
        raise unknown("kind of state", value["state"], known)
    return known[value["state"]](**{name: decode_state(item, tensors) for name, item in value["fields"].items()})


def save_state(state: StateTree, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a state to one safetensors file, with `metadata` (anything JSON can hold) beside it."""
    tensors: dict[str, Tensor] = {}
    structure = encode_state(state, tensors)
    text = {"structure": json.dumps(structure), "metadata": json.dumps(dict(metadata or {}))}
    write_tensors(Path(path), tensors, text)


def load_state(path: str | Path) -> tuple[StateTree, dict[str, Any]]:
    """A state and its metadata, as `save_state` wrote them."""
    tensors, text = read_tensors(Path(path))
    try:
        return decode_state(json.loads(text["structure"]), tensors), json.loads(text["metadata"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} holds no state of a model ({error!r})") from error
