"""The models of a study: to be trained, one for each position encoding, or trained already."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lengthwise.conversion import load
from lengthwise.errors import InputError
from lengthwise.models.expression import Expression, Leaf, parse
from lengthwise.models.language_model import LanguageModel
from lengthwise.options.extrapolation import ExtrapolateOptions
from lengthwise.positions import POSITIONS
from lengthwise.positions.stretch import SCALINGS, end_of
from lengthwise.training.checkpoint import find_checkpoint, trained_length

BYTES = 256
NORM = "layernorm"


@dataclass(frozen=True)
class Subject:
    """A model to measure. position: its encoding in full, of one to train; checkpoint: the folder of a trained one.
    described: what it is made of. scalings: those that it is measured with, "none" first."""

    name: str
    described: str
    dim: int
    parameters: int
    scalings: tuple[str, ...]
    position: str = ""
    checkpoint: Path | None = None

    def build(self, options: ExtrapolateOptions) -> LanguageModel:
        """The model that the options describe, with fresh weights."""
        return LanguageModel(BYTES, options.dim, options.layers, position=self.position, norm=NORM)


def subjects_of_positions(options: ExtrapolateOptions, trained: int, scalings: Sequence[str]) -> list[Subject]:
    """A model for each position encoding of the options. Raises InputError for one that can't be built."""
    with torch.device("meta"):
        plain = LanguageModel(BYTES, options.dim, options.layers, position="none", norm=NORM)
        heads = {found for part in plain.modules() if isinstance(found := getattr(part, "heads", None), int)}
        subjects = []
        for name in options.positions:
            whole = str(completed(parse(name), min(heads, default=None), trained))
            subject = Subject(name, f"{options.layers}, position={whole}", options.dim, 0, (), position=whole)
            model = subject.build(options)
            require_reaching(name, end_of(model), trained)
            subjects.append(dataclasses.replace(subject, parameters=size(model), scalings=serving(model, scalings)))
    return subjects


def require_reaching(name: str, end: int | None, trained: int) -> None:
    """Raise InputError for positions that end before the trained length, where nothing could be measured."""
    if end is not None and end < trained:
        raise InputError(f"{name}: its positions end at {end}, before the trained length of {trained}")


def completed(tree: Expression, heads: int | None, trained: int) -> Expression:
    """A position's expression with what it asks for and the study knows: the number of query heads, for a learned table
    the trained length, and for fire half of it as the length from which on it interpolates."""
    if not isinstance(tree, Leaf) or tree.name not in POSITIONS:
        return tree
    asked = {"heads": heads} if "heads" in inspect.signature(POSITIONS[tree.name]).parameters and heads else {}
    lengths = {"learned": {"length": trained}, "fire": {"length": trained // 2}}.get(tree.name, {})
    inner = tuple(completed(arg, heads, trained) if isinstance(arg, Expression) else arg for arg in tree.args)
    return Leaf(tree.name, inner, tuple({**asked, **lengths, **dict(tree.kwargs)}.items()), tree.place)


def subjects_of_checkpoints(
    paths: Sequence[str], length: int | None, scalings: Sequence[str]
) -> tuple[list[Subject], int]:
    """The models in some folders, and the length that they were trained at. Raises InputError for what is no language
    model of bytes, and where no length is given and the models don't agree on one."""
    found, lengths, ends = [], {}, {}
    names = [Path(path).name for path in paths]
    for path, short in zip(paths, names, strict=True):
        folder = find_checkpoint(Path(path))
        model = load(folder)
        if not isinstance(model, LanguageModel):
            raise InputError(f"{path} holds a {type(model).__name__}; only a LanguageModel predicts the next byte")
        if model.vocab_size != BYTES or model.tokenizer is not None:
            raise InputError(
                f"{path} reads {model.vocab_size} tokens of a tokenizer; only models of bytes are measured"
            )
        name = short if names.count(short) == 1 else path
        layers, position = model.config["layers"], model.config["position"]
        described = f"{layers}, position={position}"
        found.append(Subject(name, described, model.dim, size(model), serving(model, scalings), checkpoint=folder))
        lengths[path], ends[path] = trained_length(folder), end_of(model)
    agreed = set(lengths.values())
    if length is None and (len(agreed) != 1 or None in agreed):
        said = ", ".join(f"{path}: {at or 'not known'}" for path, at in lengths.items())
        raise InputError(f"give the --length that the models were trained at; their folders say {said}")
    trained = int(next(iter(lengths.values())) if length is None else length)  # type: ignore[arg-type]
    for path, end in ends.items():
        require_reaching(path, end, trained)
    return found, trained


def size(model: LanguageModel) -> int:
    """Parameters, each once."""
    return sum(p.numel() for p in model.parameters())


def serving(model: LanguageModel, scalings: Sequence[str]) -> tuple[str, ...]:
    """Those of the scalings that change something in a model, and "none"."""
    return tuple(how for how in scalings if how == "none" or SCALINGS[how].applies(model))
