"""Models as files: safetensors and JSON only, so that loading a stranger's file never runs code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lengthwise.errors import InputError
from lengthwise.models.files import write_json, write_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"


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
    if not type(model).__module__.startswith("lengthwise.models."):
        raise InputError(f"only models of lengthwise.models can be saved, got {type(model).__name__}")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, own_tensors(model))
    save_tokenizer(model, folder)
    write_json(folder / CONFIG, {"model": type(model).__name__, "config": model.config})


def save_tokenizer(model: nn.Module, folder: Path) -> None:
    """Write a model's tokenizer to its folder, where it has one."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None:
        tokenizer.save(folder)


def require_described(
    build: Callable[[], nn.Module],
    tensors: Mapping[str, Tensor],
    source: str,
    place: Path,
    read: Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda _, tensors: tensors,
) -> None:
    """Raise InputError unless the tensors are those of the model that `build` makes, before anything of its size is.

    It is made on the meta device, where sizes take no memory, and no further than there are weights: a file of a few
    bytes can ask for any width and any number of layers. `source` is what describes it, `place` has the tensors, and
    `read` gives them by the model's own names.
    """
    try:
        with torch.device("meta"), at_most(2 * len(tensors) + 16, len(tensors), source):
            twin = build()
    except (RuntimeError, OverflowError, MemoryError) as error:
        if "meta tensor" in str(error):  # a part of the caller's own reads numbers of what it makes
            return
        raise InputError(f"{source} describes a model of impossible sizes ({first_line(error)})") from None
    require_fitting(twin, read(twin, tensors), place)


@contextmanager
def at_most(count: int, there: int, source: str) -> Iterator[None]:
    """Within this, InputError where this thread makes more weights than `count`. Some are made twice, to be tied."""
    made, thread = 0, threading.get_ident()

    def made_one(module: nn.Module, name: str, weight: nn.Parameter) -> None:  # noqa: ARG001
        nonlocal made
        made += thread == threading.get_ident()
        if made > count:
            raise InputError(f"{source} describes a model of more weights than the {there} tensors that there are")

    handle = register_module_parameter_registration_hook(made_one)
    try:
        yield
    finally:
        handle.remove()


def first_line(error: BaseException) -> str:
    """What an error says, without the traces of PyTorch's own code."""
    return str(error).partition("\n")[0]


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into a model that they fit."""
    require_fitting(model, tensors, source)
    with torch.no_grad():
        for name, tensor in own_tensors(model).items():
            tensor.copy_(tensors[name])


def require_fitting(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise InputError unless each tensor of a model is there, with its shape and numbers of its kind, and no other."""
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
        if kind_of(tensors[name]) != kind_of(tensor):
            raise InputError(f"{source} has {name!r} as {tensors[name].dtype}, which can't be made {tensor.dtype}")


def kind_of(tensor: Tensor) -> tuple[bool, bool, bool]:
    """Whether its numbers are real, complex, or yes and no."""
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool
