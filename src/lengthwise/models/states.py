"""States as files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lengthwise.contract import State, StateTree
from lengthwise.errors import InputError, unknown
from lengthwise.models.files import read_tensors, write_tensors


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
