"""Ctrl-C as a request: the step is finished and a checkpoint written before a run ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class StopRequest:
    """Whether the user, or the system, asked the run to stop."""

    def __init__(self) -> None:
        self.made = False

    def __call__(self, number: int, frame: Any) -> None:  # noqa: ARG002
        """The handler of the signal. A second one stops at once."""
        if self.made:
            raise KeyboardInterrupt
        self.made = True


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within this, SIGINT and SIGTERM make a request instead of ending the process."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
