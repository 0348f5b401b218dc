"""GGUF, the files of llama.cpp: settings by their names, and tensors in many quantised forms.

The file is read by place and count alone, each checked against its end, so that none can run code or ask for memory
that it hasn't the bytes for. Numbers of all types are little-endian:

    "GGUF"  version  tensors  settings                      32, 32, 64, 64 bits
    for each setting: name, type, value                     a text is its length and UTF-8, a list its type and length
    for each tensor: name, dimensions, sizes, type, place   the last of the sizes counts rows
    the tensors, each from a multiple of general.alignment bytes on
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lengthwise.errors import InputError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of numbers, by the format that `struct` has for them."""

TEXT, LIST = 8, 9
VERSIONS = (2, 3)


@dataclass(frozen=True)
class Stored:
    """Where a tensor is: its type, its sizes with the rows first, and its first byte."""

    kind: int
    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True)
class GGUFFile:
    """The settings of a file by their names, and its tensors, which are read one by one."""

    path: Path
    content: Any
    metadata: dict[str, Any]
    stored: dict[str, Stored]

    def tensor(self, name: str) -> Float[Tensor, "..."]:
        """A tensor in float32, whatever form it is kept in."""
        kind, rows = self.form(name)
        stored = self.stored[name]
        raw = np.frombuffer(self.content, np.uint8, prod(rows), stored.begin)
        try:
            values = package().quants.dequantize(raw.reshape(rows), kind)
        except NotImplementedError:
            raise InputError(f"{self.path}: {name} is kept as {kind.name}, which can't be made float32") from None
        return torch.from_numpy(np.array(values, np.float32).reshape(stored.shape))

    def form(self, name: str) -> tuple[Any, tuple[int, ...]]:
        """How a tensor is kept, and the bytes of its rows, all of which are there."""
        gguf = package()
        stored = self.stored[name]
        try:
            kind = gguf.GGMLQuantizationType(stored.kind)
            rows = gguf.quants.quant_shape_to_byte_shape(stored.shape, kind)
        except ValueError as error:
            raise InputError(f"{self.path}: {name} is of a type that the package gguf doesn't know ({error})") from None
        if stored.begin + prod(rows) > len(self.content):
            raise InputError(f"{self.path} is cut short: it ends within {name}")
        return kind, rows

    def require_whole(self) -> None:
        """Raise InputError where a tensor's form isn't known or its bytes aren't all there."""
        for name in self.stored:
            self.form(name)

    def setting(self, name: str, kind: type, default: Any = None) -> Any:
        """A setting of the given type, of which whole numbers are `float` too. Raises InputError where it is of
        another, or there is none and no default."""
        value = self.metadata.get(name, default)
        if value is None:
            raise InputError(f"{self.path} lacks the setting {name}")
        if not is_a(value, kind):
            raise InputError(f"{self.path} has {name} = {str(value)[:40]}, which is no {WORDS[kind]}")
        return value

    def list_of(self, name: str, kind: type, default: list[Any] | None = None) -> list[Any]:
        """A setting that is a list of the given type."""
        values = self.setting(name, list, default)
        wrong = [value for value in values if not is_a(value, kind)]
        if wrong:
            raise InputError(f"{self.path} has {str(wrong[0])[:40]} among {name}, which is no {WORDS[kind]}")
        return values


WORDS = {int: "whole number", float: "number", bool: "yes or no", str: "text", list: "list"}


def is_a(value: Any, kind: type) -> bool:
    """Whether a value is of a type, of which whole numbers are `float` too, and yes and no are numbers of no kind."""
    return isinstance(value, bool) == (kind is bool) and isinstance(value, (int, float) if kind is float else kind)


def package() -> Any:
    """The package gguf, which knows the quantised forms."""
    try:
        import gguf
    except ImportError:
        raise InputError("reading GGUF needs the package gguf; pip install 'lengthwise[hf]'") from None
    return gguf


def read_gguf(path: Path) -> GGUFFile:
    """The settings of a GGUF file and the places of its tensors.

    Raises InputError for another file, another version, and one that is cut short.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is no GGUF file, nor a folder with a model")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = _Reader(path, content)
    version = reader.number("I")
    if version not in VERSIONS:
        other = "of the other byte order" if version & 0xFFFF == 0 else f"of version {version}"
        raise InputError(f"{path} is a GGUF file {other}; lengthwise reads little-endian ones of versions 2 and 3")
    tensors, settings = reader.number("Q"), reader.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(settings):
        name = reader.text()
        if name in metadata:
            raise InputError(f"{path} is broken: it has the setting {name} twice")
        metadata[name] = reader.value(reader.number("I"))
    infos = [reader.tensor() for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise InputError(f"{path} has general.alignment = {alignment}, which must be a whole number from 1 up")
    begin = -(-reader.place // alignment) * alignment
    stored = {name: Stored(kind, shape, begin + offset) for name, kind, shape, offset in infos}
    if len(stored) < len(infos):
        raise InputError(f"{path} is broken: it has two tensors of one name")
    return GGUFFile(path, content, metadata, stored)


class _Reader:
    """Reads one thing after the other, and says where a file ends too early."""

    def __init__(self, path: Path, content: Any):
        self.path, self.content, self.place = path, content, 4

    def take(self, count: int) -> int:
        """The place of the next `count` bytes, which are then behind."""
        begin, self.place = self.place, self.place + count
        if self.place > len(self.content):
            raise InputError(f"{self.path} is cut short: it ends within its settings")
        return begin

    def numbers(self, code: str, count: int) -> list[Any]:
        """The next numbers of one type, those of 32 bits as the shortest decimals that they are."""
        begin = self.take(count * struct.calcsize(f"<{code}"))
        values = np.frombuffer(self.content, np.dtype(f"<{code}"), count, begin)
        return [float(str(value)) for value in values] if code == "f" else values.tolist()

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def text(self) -> str:
        count = self.number("Q")
        begin = self.take(count)
        try:
            return self.content[begin : begin + count].decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{self.path} is broken: at byte {begin} there should be a text") from None

    def value(self, kind: int) -> Any:
        """A setting's value."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            return self.text()
        inner = self.number("I") if kind == LIST else kind
        if kind != LIST or (inner != TEXT and inner not in SCALARS):
            raise InputError(f"{self.path} is broken: at byte {self.place} is a setting of the unknown type {inner}")
        count = self.number("Q")
        if inner == TEXT:
            return [self.text() for _ in range(count)]
        return self.numbers(SCALARS[inner], count)

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Name, type, shape and offset of a tensor."""
        name = self.text()
        sizes = self.numbers("Q", self.number("I"))
        if not sizes:
            raise InputError(f"{self.path} is broken: its tensor {name} has no sizes")
        return name, self.number("I"), tuple(reversed(sizes)), self.number("Q")
