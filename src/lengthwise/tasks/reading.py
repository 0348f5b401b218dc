"""Files on the disk as arrays of tokens: which files a path stands for, and what is in them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lengthwise.errors import InputError
from lengthwise.models.tokenizer import Tokenizer

MAPPED = 16 * 2**20
"""Files from this many bytes on are memory-mapped. A map holds a file open, so smaller ones are read whole."""

PIECE = 2**20
"""Characters that a tokenizer is given at a time."""


def find_files(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Every file that `paths` stand for, each once, in the order given and sorted within a folder or glob; and a note
    for each file or folder that can't be read."""
    if not paths:
        raise InputError("no data given; give a file, a folder or a glob such as 'texts/*.txt'")
    files: dict[Path, Path] = {}
    notes: list[str] = []
    for given in paths:
        for path in _expand(str(given)):
            for file in _below(path, notes) if path.is_dir() else [path]:
                files.setdefault(file.resolve(), file)
    return list(files.values()), notes


def _expand(given: str) -> list[Path]:
    if not given:
        raise InputError("the path of the data is empty; give a file, a folder or a glob such as 'texts/*.txt'")
    path = Path(given).expanduser()
    if _exists(path):
        return [path]
    if glob.has_magic(given):
        found = sorted(glob.glob(str(path), recursive=True))
        if found:
            return [Path(f) for f in found]
        raise InputError(f"no file matches {given!r}; put the pattern in quotes and check it with ls")
    raise InputError(f"there is no file or folder {given!r}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _below(folder: Path, notes: list[str]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        notes.append(f"{error.filename} can't be read ({error.strerror})")

    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root) / name
            if not name.startswith(".") and path.is_file():
                yield path


def load_bytes(path: Path) -> np.ndarray:
    """The bytes of a file, memory-mapped where it is big."""
    if not path.is_file():
        raise OSError("not a regular file")
    if path.stat().st_size >= MAPPED:
        return np.memmap(path, dtype=np.uint8, mode="r")
    return np.fromfile(path, dtype=np.uint8)


def tokenise(tokenizer: Tokenizer, content: np.ndarray) -> np.ndarray:
    """The tokens of a text in UTF-8, without special tokens; what isn't UTF-8 becomes the replacement character.

    A long text is given to the tokenizer in pieces that begin with the first word of a line, where no token of the
    usual pre-tokenizers lies across.
    """
    text = content.tobytes().decode("utf-8", errors="replace")
    pieces, begin = [], 0
    while begin < len(text):
        end = min(begin + PIECE, len(text))
        while end < len(text) and not (text[end - 1] == "\n" and not text[end].isspace()):
            end += 1
        pieces.append(np.array(tokenizer.encode(text[begin:end]), dtype=np.int32))
        begin = end
    return np.concatenate(pieces) if pieces else np.empty(0, np.int32)
