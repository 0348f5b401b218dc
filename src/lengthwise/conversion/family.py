"""What a kind of models that transformers has too is: how its settings and the names of its weights translate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, cat, nn

from lengthwise.contract import SequenceModule
from lengthwise.errors import InputError, unknown
from lengthwise.models.saving import load_weights, own_tensors, require_described

LAYERS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
"""The settings that say how many layers there are, each of which has weights."""

EPS = 1e-5
"""What norms add to the mean square or the variance."""


class Family:
    """One kind of model. A subclass says what its settings mean and where its weights are.

    model_type: transformers' name of it. architectures: transformers' names of the models of this kind, and what each
    is here.
    part: the mixer that its layers have.
    only: settings that lengthwise has at one value alone, and that value.
    lifted: the last parts of the names of vectors that transformers keeps as [1, 1, n].
    """

    model_type: ClassVar[str]
    architectures: ClassVar[Mapping[str, type[nn.Module]]]
    part: ClassVar[type[SequenceModule]]
    only: ClassVar[Mapping[str, Any]]
    lifted: ClassVar[frozenset[str]] = frozenset()

    def has(self, model: nn.Module) -> bool:
        """Whether the model is of one of this family's classes and has its mixer."""
        made = type(model) in self.architectures.values()
        return made and any(type(module) is self.part for module in model.modules())

    def build(self, settings: Mapping[str, Any], source: str) -> nn.Module:
        """The model that the settings describe, with fresh weights. `source` is named in errors."""
        for name, value in self.only.items():
            if settings.get(name, value) != value:
                raise InputError(f"{source} has {name} = {settings[name]}; lengthwise has {value} alone")
        named = settings.get("architectures") or [next(iter(self.architectures))]
        if not isinstance(named, list) or named[0] not in self.architectures:
            raise unknown("architecture of transformers", str(named), self.architectures)
        return self.architectures[named[0]](**self.translate(Reader(settings, source)))

    def translate(self, read: Reader) -> dict[str, Any]:
        """The arguments of the model."""
        raise NotImplementedError

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """What transformers' configuration says of a model of this family."""
        named = [name for name, kind in self.architectures.items() if type(model) is kind]
        kind = {"model_type": self.model_type, "architectures": named[:1], "dtype": dtype_name(model)}
        return {**kind, **self.only, **self.settings(model)}

    def settings(self, model: Any) -> dict[str, Any]:
        """The settings of a model that has this family's mixer."""
        raise NotImplementedError

    def names(self, model: nn.Module) -> dict[str, str]:
        """Transformers' name of every weight, those that are tied to another too."""
        prefixes = self.prefixes(model)
        found = {}
        for name in model.state_dict():
            ours, theirs = next(pair for pair in prefixes if f"{name}.".startswith(pair[0] + "."))
            found[name] = theirs + name[len(ours) :]
        return found

    def prefixes(self, model: Any) -> Sequence[tuple[str, str]]:
        """Pairs of beginnings of names, ours and theirs."""
        raise NotImplementedError

    def read(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of transformers by our names. What isn't known keeps its name."""
        expected = own_tensors(model)
        tied = model.state_dict().keys() - expected.keys()
        ordered = sorted(self.names(model).items(), key=lambda pair: pair[0] not in tied)
        names = {theirs: ours for ours, theirs in ordered}  # where several of ours share one of theirs, its own stays
        found = {}
        for name, tensor in tensors.items():
            ours = names.get(name, name)
            if ours in tied:
                continue  # the same numbers as those it is tied to
            # Vectors may be kept with dimensions of size 1 before them.
            vector = ours in expected and expected[ours].ndim == 1 and tensor.shape[:-1].numel() == 1
            found[ours] = tensor.flatten() if vector else tensor
        return found

    def load(self, settings: Mapping[str, Any], source: str, tensors: Mapping[str, Tensor], place: Path) -> nn.Module:
        """The model that the settings describe with weights of transformers. `source` and `place` name both in errors.

        Raises InputError for sizes of which there are no weights, before they need memory.
        """
        for name in LAYERS:
            if isinstance(settings.get(name), int) and settings[name] > len(tensors):
                raise InputError(f"{source} has {name} = {settings[name]}, and {place} only {len(tensors)} tensors")
        require_described(lambda: self.build(settings, source), tensors, source, place, self.read)
        model = self.build(settings, source)
        load_weights(model, self.read(model, tensors), place)
        return model

    def write(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights by transformers' names, each once."""
        names = self.names(model)
        return {
            names[name]: tensor.reshape(1, 1, -1) if names[name].rpartition(".")[2] in self.lifted else tensor
            for name, tensor in own_tensors(model).items()
        }


class Reader:
    """Reads settings, and says which is wrong where one is."""

    def __init__(self, settings: Mapping[str, Any], source: str):
        self.settings, self.source = settings, source

    def size(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` up."""
        value = self.settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            given = "lacks it" if name not in self.settings else f"has {value!r}"
            raise InputError(f"{name} must be a whole number from {least} up; {self.source} {given}")
        return value

    def number(self, name: str, default: float) -> float:
        """A number."""
        value = self.settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{name} must be a number; {self.source} has {value!r}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Yes or no."""
        value = self.settings.get(name, default)
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false; {self.source} has {value!r}")
        return value


def join_rows(tensors: Mapping[str, Tensor], parts: tuple[str, str], whole: str) -> dict[str, Tensor]:
    """The tensors, those whose names have `parts` joined in one of the name with `whole`, the first's rows first."""
    joined = dict(tensors)
    for name in tensors:
        other = name.replace(*parts)
        if parts[0] in name and other in joined and tensors[name].shape[1:] == tensors[other].shape[1:]:
            joined[name.replace(parts[0], whole)] = cat((joined.pop(name), joined.pop(other)))
    return joined


def part_rows(
    tensors: Mapping[str, Tensor], names: Iterable[str], parts: tuple[str, str], whole: str
) -> dict[str, Tensor]:
    """The tensors, the rows of each of `names` halved in two of the names with `parts` in the place of `whole`."""
    parted = dict(tensors)
    for name in names:
        halves = zip(parts, parted.pop(name).chunk(2), strict=True)
        parted |= {name.replace(whole, part): half for part, half in halves}
    return parted


def dtype_name(model: nn.Module) -> str:
    """The dtype of the weights, as "float32"."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def arguments(values: Mapping[str, Any]) -> str:
    """Arguments as an expression writes them."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def ratio(a: int, b: int) -> int | float:
    """a / b, whole where it is."""
    return a / b if a % b else a // b
