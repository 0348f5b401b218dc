"""Checkpoints: folders that appear whole or not at all.

    RUN/settings.yaml                  what the run was told
    RUN/metrics.jsonl, tensorboard/    what was measured
    RUN/checkpoints/step-00000100/     config.json, model.safetensors: what `lengthwise.load` reads
                                       trainer.json, trainer-R.safetensors, state-R.safetensors: what a run goes on from
    RUN/last, RUN/best                 links to the latest checkpoint and to the best on held-out data

A checkpoint is written beside its place, flushed to the disk and then renamed; only then the link moves on, and only
then what no link points to is removed. A kill at any moment leaves the last complete checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lengthwise.errors import InputError
from lengthwise.models.files import read_json

LAST, BEST, CHECKPOINTS = "last", "best", "checkpoints"


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_of(run: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def writing_place(run: Path, step: int) -> Path:
    """The folder in which that checkpoint is put together."""
    place = place_of(run, step)
    return place.with_name(f".{place.name}.writing")


@contextlib.contextmanager
def whole_or_nothing(run: Path, step: int) -> Iterator[Path]:
    """A folder to write a checkpoint in, which gets its name only when everything in it is on the disk."""
    folder, place = writing_place(run, step), place_of(run, step)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(place, ignore_errors=True)
    os.replace(folder, place)
    sync_folder(place.parent)


def point_to(run: Path, name: str, step: int) -> None:
    """Make the link RUN/name point to the checkpoint of `step`, in one move."""
    partial = run / f".{name}.link"
    partial.unlink(missing_ok=True)
    partial.symlink_to(place_of(run, step).relative_to(run), target_is_directory=True)
    os.replace(partial, run / name)
    sync_folder(run)


def linked(run: Path, name: str) -> Path | None:
    """The checkpoint that a link of the run points to, if there is one."""
    link = run / name
    return link.resolve() if link.is_symlink() and link.exists() else None


def remove_unlinked(run: Path) -> None:
    """Remove every checkpoint that neither the last nor the best link points to."""
    kept = {linked(run, LAST), linked(run, BEST)}
    for folder in (run / CHECKPOINTS).iterdir():
        if folder.resolve() not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user means by a path: a file or folder itself, or of a run the best one, else the last."""
    if path.is_file() or (path / "config.json").exists():
        return path
    found = linked(path, BEST) or linked(path, LAST)
    if found is None:
        what = "holds no checkpoint" if path.is_dir() else "is no folder"
        raise InputError(f"{str(path)!r} {what}; give the folder of a run or of a model, or a GGUF file")
    return found


def trained_length(folder: Path) -> int | None:
    """The context length that the run of a checkpoint trained with; None where the folder doesn't say."""
    file = folder / "trainer.json"
    if not file.exists():
        return None
    described = read_json(file)
    length = described.get("length") if isinstance(described, dict) else None
    if not isinstance(length, int) or length < 1:
        raise InputError(
            f"{file} must say the length that the run trained with, a whole number from 1 on, got {length}"
        )
    return length
