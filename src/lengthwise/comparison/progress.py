"""How far a comparison is, and about how long it still takes."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SETTLED = 10.0
"""Seconds after which the time left follows what the run has taken rather than what was planned."""


class Timeline:
    """A bar over the planned seconds of a run. Each phase moves it from where it begins by its planned seconds.

    planned: None where it isn't known yet. The time that is left is what was planned for it, at the pace of the run so
    far: plans are made from a few steps, and a machine has other work too.
    """

    def __init__(self, console: Console, planned: float | None):
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
        self.progress = Progress(*columns, console=console, transient=True)
        self.task = self.progress.add_task("starting", total=planned, left="")
        self.planned = planned
        self.done = 0.0
        self.phase = 0.0
        self.began = time.perf_counter()

    def __enter__(self) -> Timeline:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def plan(self, planned: float) -> None:
        """So many seconds from now on, known only after some of the run is done."""
        self.planned, self.done, self.phase = planned, 0.0, 0.0
        self.began = time.perf_counter()
        self.progress.update(self.task, total=planned, completed=0.0)

    def begin(self, text: str, planned: float) -> None:
        """A phase that should take so many seconds."""
        self.done += self.phase
        self.phase = planned
        self.tell(text, 0.0)

    def tell(self, text: str, fraction: float | None = None) -> None:
        """What is being done, and which fraction of the phase is done; by the clock where it isn't known."""
        if fraction is None:
            seconds = min(self.phase, max(0.0, time.perf_counter() - self.began - self.done))
        else:
            seconds = fraction * self.phase
        at = self.done + seconds
        self.progress.update(self.task, description=text, completed=at, left=self.left(at))

    def left(self, at: float) -> str:
        """The time left in words, after so many of the planned seconds; nothing where they aren't known."""
        if self.planned is None:
            return ""
        passed = time.perf_counter() - self.began
        pace = passed / at if min(passed, at) > SETTLED else 1.0
        minutes, rest = divmod(round(max(0.0, self.planned - at) * pace), 60)
        return f"about {minutes}:{rest:02d} left"

    def say(self, text: str) -> None:
        """A line that stays."""
        self.progress.console.print(text, markup=False, highlight=False)
