"""Data of the user's own as sequences of tokens: any file, folder or glob, as bytes or through a tokenizer.

A `Corpus` is a row of documents (files). Laid end to end they are one long sequence of `len(corpus)` tokens, from which
batches, carried streams, packed rows and validation windows are cut. Everything drawn at random depends on the seed and
the number of the step alone, so a run can go on at any step without drawing what came before.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lengthwise.contract import Layout
from lengthwise.errors import InputError, unknown
from lengthwise.models.tokenizer import Tokenizer
from lengthwise.tasks.reading import find_files, load_bytes, tokenise
from lengthwise.training.packing import PACKERS, Packer, divided

T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """One file: its name and its tokens, a vector of integers (memory-mapped where the file is big)."""

    name: str
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Batch:
    """Tokens with the place of each in its document.

    tokens: [batch, length + 1]; a model reads the first `length` and predicts the last `length`.
    layout: positions and documents of the `length` tokens that are read.
    mask: [batch, length], False where the token to predict belongs to another document.
    """

    tokens: Int[Tensor, "batch length_1"]
    layout: Layout
    mask: Bool[Tensor, "batch length"]

    @property
    def inputs(self) -> Int[Tensor, "batch length"]:
        """The tokens that the model reads."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Int[Tensor, "batch length"]:
        """The token that follows each."""
        return self.tokens[:, 1:]


@dataclass(frozen=True)
class Corpus:
    """Documents, the size of their vocabulary, and the bytes of text that one token stands for on average.

    notes: what was left out while reading, one sentence each.
    """

    documents: tuple[Document, ...]
    vocab_size: int = 256
    bytes_per_token: float = 1.0
    notes: tuple[str, ...] = ()
    _ends: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", np.cumsum([len(d) for d in self.documents], dtype=np.int64))

    def __len__(self) -> int:
        """Tokens in all documents."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def cut(self, begin: int, end: int) -> Int[Tensor, " tokens"]:
        """The tokens from `begin` to `end` of all documents laid end to end."""
        if not 0 <= begin <= end <= len(self):
            raise InputError(f"a cut must lie between 0 and {len(self)} tokens, got {begin} to {end}")
        pieces = []
        number = int(np.searchsorted(self._ends, begin, side="right"))
        while begin < end:
            tokens = self.documents[number].tokens
            offset = int(self._ends[number]) - len(tokens)
            pieces.append(np.asarray(tokens[begin - offset : end - offset]).astype(np.int64))
            begin, number = min(end, offset + len(tokens)), number + 1
        return torch.from_numpy(np.concatenate(pieces) if pieces else np.empty(0, np.int64))

    def split(self, every: int = 10) -> tuple[Corpus, Corpus]:
        """Training and validation data that share no document: every `every`-th file is held out.

        Of fewer files than that, the one whose share of the tokens is nearest to 1/every is held out; of a single
        file, its last 1/every.
        """
        if every < 2:
            raise InputError(f"every must be at least 2 so that something is left to train on, got {every}")
        documents = self.documents
        if len(documents) == 1:
            name, tokens = documents[0].name, documents[0].tokens
            at = len(tokens) - max(1, len(tokens) // every)
            return self._of([Document(name, tokens[:at])]), self._of([Document(name, tokens[at:])])
        if len(documents) < every:
            held_out = {min(range(len(documents)), key=lambda i: abs(len(documents[i]) - len(self) / every))}
        else:
            held_out = set(range(every - 1, len(documents), every))
        train = [d for i, d in enumerate(documents) if i not in held_out]
        return self._of(train), self._of([documents[i] for i in sorted(held_out)])

    def select(self, keep: Callable[[str], bool]) -> Corpus:
        """The documents for whose names `keep` is true."""
        return self._of([d for d in self.documents if keep(d.name)])

    def _of(self, documents: Sequence[Document]) -> Corpus:
        return Corpus(tuple(documents), self.vocab_size, self.bytes_per_token, self.notes)

    def require(self, length: int, rows: int = 1) -> None:
        """Raise an InputError unless there are `rows` stretches of one context and the token after it."""
        if length < 1 or rows < 1:
            raise InputError(f"length and batch must be at least 1, got {length} and {rows}")
        if len(self) < rows * (length + 1):
            needed = f"{rows} contexts of length {length} need {rows * (length + 1)}"
            if rows == 1:
                needed = f"one context of length {length} needs {length + 1}"
            raise InputError(f"the data has {len(self)} tokens, but {needed}; give more data or a smaller length")

    def _require_successors(self) -> None:
        if all(len(d) < 2 for d in self.documents):
            raise InputError("no file has a second token to predict from its first; give longer ones")

    def batches(self, length: int, batch: int, seed: int = 0, *, start: int = 0) -> Iterator[Int[Tensor, "batch n"]]:
        """Endless batches [batch, length + 1] from random places, from step `start` on; windows may cross files."""
        self.require(length)
        _require_batch(batch)

        def rows(step: int) -> Int[Tensor, "batch n"]:
            begins = np.random.default_rng((seed, step)).integers(0, len(self) - length, size=batch)
            return torch.stack([self.cut(int(b), int(b) + length + 1) for b in begins])

        return _steps(rows, start)

    def streams(self, length: int, batch: int, *, start: int = 0) -> Iterator[Batch]:
        """Endless batches in which row r goes on where row r of the batch before ended, for training with a carried
        state. The data is divided into `batch` equal streams; a document that begins, and a stream that begins anew,
        is at position 0 of the layout, where a model forgets its state."""
        _require_batch(batch)
        self.require(length, batch)
        self._require_successors()
        each = len(self) // batch
        chunks = (each - 1) // length
        first = np.arange(batch) * each
        ids = np.arange(length + 1)

        def rows(step: int) -> Batch:
            begins = first + step % chunks * length
            places = begins[:, None] + ids
            documents = np.searchsorted(self._ends, places, side="right")
            sizes = np.array([len(d) for d in self.documents])
            opened = np.maximum(self._ends[documents] - sizes[documents], first[:, None])
            tokens = torch.stack([self.cut(int(b), int(b) + length + 1) for b in begins])
            return _with_layout(tokens, places - opened, documents)

        return _steps(rows, start)

    def packed(
        self, length: int, batch: int, seed: int = 0, *, packing: str = "cut", start: int = 0
    ) -> Iterator[Batch]:
        """Endless rows of several documents, in a new random order each epoch.

        packing: with "cut" every row is full; a document that doesn't fit is cut at the end of its row, and what
        remains opens the next row as a document of its own. With one of `training.packing.PACKERS` documents stay whole
        and what a row has left is padding; one of more than `length` + 1 tokens is divided first, and what has a single
        token, which predicts nothing, is left out. Those rows are packed once: an epoch is another order of them.
        Raises InputError for an unknown packing, and where no document has two tokens.
        """
        _require_batch(batch)
        self.require(length)
        self._require_successors()
        if packing == "cut":
            return self._cut_rows(length, batch, seed, start)
        if packing not in PACKERS:
            raise unknown("packing", packing, ["cut", *PACKERS])
        return self._whole_rows(PACKERS[packing], length, batch, seed, start)

    def _cut_rows(self, length: int, batch: int, seed: int, start: int) -> Iterator[Batch]:
        width = length + 1
        each = len(self) // width

        @lru_cache(maxsize=1)
        def shuffled(epoch: int) -> Corpus:
            order = np.random.default_rng((seed, epoch)).permutation(len(self.documents))
            return self._of([self.documents[i] for i in order])

        def rows(step: int) -> Batch:
            tokens, places, numbers = [], [], []
            for row in range(step * batch, (step + 1) * batch):
                corpus = shuffled(row // each)
                begin = row % each * width
                ids = np.arange(begin, begin + width)
                documents = np.searchsorted(corpus._ends, ids, side="right")
                opened = np.concatenate([[0], corpus._ends])[documents]
                tokens.append(corpus.cut(begin, begin + width))
                places.append(ids - np.maximum(opened, begin))
                numbers.append(documents)
            return _with_layout(torch.stack(tokens), np.stack(places), np.stack(numbers))

        return _steps(rows, start)

    def _whole_rows(self, packer: Packer, length: int, batch: int, seed: int, start: int) -> Iterator[Batch]:
        sizes = [len(d) for d in self.documents]
        opened = (self._ends - sizes).tolist()
        parts = [(opened[n] + b, opened[n] + e) for n, b, e in divided(sizes, length + 1) if e - b > 1]
        np.random.default_rng(seed).shuffle(parts)
        whole = packer([e - b for b, e in parts], length + 1)
        each = len(whole.rows)

        @lru_cache(maxsize=1)
        def order(epoch: int) -> list[int]:
            return np.random.default_rng((seed, epoch)).permutation(each).tolist()

        def rows(step: int) -> Batch:
            chosen = whole.select([order(row // each)[row % each] for row in range(step * batch, (step + 1) * batch)])
            tokens = chosen.pack({n: self.cut(*parts[n]) for row in chosen.rows for n in row})
            layout = chosen.layout()
            return Batch(tokens, layout.slice(0, length), layout.positions[:, 1:] > 0)

        return _steps(rows, start)

    def windows(self, count: int, length: int) -> Int[Tensor, "count n"]:
        """`count` evenly spaced windows [count, length + 1], fewer where they would overlap by more than the token
        that one predicts last and the next reads first."""
        self.require(length)
        if count < 1:
            raise InputError(f"count must be at least 1, got {count}")
        count = min(count, (len(self) - 1) // length)
        begins = np.linspace(0, len(self) - length - 1, count).astype(int)
        return torch.stack([self.cut(int(b), int(b) + length + 1) for b in begins])


def _require_batch(batch: int) -> None:
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")


def _with_layout(tokens: Tensor, positions: np.ndarray, documents: np.ndarray) -> Batch:
    layout = Layout(torch.from_numpy(positions[:, :-1].copy()), torch.from_numpy(documents[:, :-1].copy()))
    return Batch(tokens, layout, torch.from_numpy(positions[:, 1:] > 0))


def _steps(rows: Callable[[int], T], start: int) -> Iterator[T]:
    while True:
        yield rows(start)
        start += 1


def read(paths: Sequence[str | Path] | str | Path, tokenizer: Path | str | Tokenizer | None = None) -> Corpus:
    """The data under `paths`: files, folders (with what is below them, sorted, without hidden files) and globs.

    Files are read as bytes, a vocabulary of 256, or with `tokenizer`, a Hugging Face tokenizer.json or a model's.
    Empty and unreadable files are left out with a note. Raises InputError where a path doesn't exist or nothing is
    left.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files, notes = find_files(given)
    tokenizer = Tokenizer.read(Path(tokenizer)) if isinstance(tokenizer, str | Path) else tokenizer
    return _corpus(files, notes, tokenizer, ", ".join(str(p) for p in given))


def standard_library(*, packages: bool = False) -> Corpus:
    """The source text of the running Python's standard library, a corpus that every machine has.

    The top-level modules, sorted by name; with `packages`, the modules inside packages as well.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(root.glob("*.py"))
    if packages:
        installed = {"site-packages", "dist-packages", "__pycache__"}
        inside = (f for f in root.glob("*/**/*.py") if not installed & set(f.relative_to(root).parts))
        files = sorted([*files, *inside])
    if not files:
        raise InputError(f"this Python has no source text of its standard library under {root}; give data of your own")
    return _corpus(files, [], None, str(root), root)


def _corpus(
    files: Sequence[Path], notes: Sequence[str], encoder: Tokenizer | None, source: str, root: Path | None = None
) -> Corpus:
    documents, left_out, size = [], list(notes), 0
    for path in files:
        try:
            content = load_bytes(path)
        except OSError as error:
            left_out.append(f"{path} can't be read ({error.strerror or error})")
            continue
        tokens = content if encoder is None else tokenise(encoder, content)
        if not len(tokens):
            left_out.append(f"{path} is empty")
            continue
        size += len(content)
        documents.append(Document(str(path.relative_to(root) if root else path), tokens))
    if not documents:
        why = f": {left_out[0]}" if len(left_out) == 1 else ""
        raise InputError(f"{source} holds no data{why}; give a file or a folder with at least one readable file")
    if encoder is None:
        return Corpus(tuple(documents), notes=tuple(left_out))
    tokens_in_all = sum(len(d) for d in documents)
    return Corpus(tuple(documents), encoder.vocab_size, size / tokens_in_all, tuple(left_out))
