"""What a run writes down as it goes: JSON lines always, TensorBoard beside them, progress on the terminal."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

METRICS = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file. A last line that a kill cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Journal:
    """Records of a run that goes on from `step`: what an earlier attempt wrote of later steps is taken back."""

    def __init__(self, folder: Path, step: int):
        # protobuf and the writer take a second to import, which only training needs
        from torch.utils.tensorboard import SummaryWriter

        kept = [r for r in read_metrics(folder / METRICS) if r["step"] <= step]
        partial = folder / f".{METRICS}.partial"
        partial.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        os.replace(partial, folder / METRICS)
        self.file = open(folder / METRICS, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, **numbers: float | None) -> None:
        """One record: `step` optimiser steps are done, and what was measured."""
        self.file.write(json.dumps({"kind": kind, "step": step, **numbers}) + "\n")
        for name, number in numbers.items():
            if number is not None:
                self.board.add_scalar(f"{kind}/{name}", number, step)

    def close(self) -> None:
        """Everything to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.board.close()


class Bar:
    """Progress with the time left on a terminal; where there is none, a line now and then. All on standard error."""

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "step", quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet)
        self.unit, self.total, self.done, self.told = unit, total, done, done
        self.progress = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def advance(self, note: str = "", by: int = 1) -> None:
        """`by` more are done."""
        self.done += by
        self.progress.update(self.task, completed=self.done, note=note)
        # a tenth of the work between two lines keeps the log of a batch system short
        if not self.console.is_terminal and (self.done - self.told) * 10 >= self.total:
            self.told = self.done
            self.say(f"{self.unit} {self.done} of {self.total}  {note}")

    def say(self, message: str) -> None:
        """A line above the bar."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)
        sys.stderr.flush()
