"""Verbs in a process of their own, as a user runs and stops them."""

import signal
import subprocess
import sys
import time
from pathlib import Path


def lengthwise(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A verb to its end."""
    command = [sys.executable, "-m", "lengthwise", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def stopped_by_ctrl_c(*arguments: str, results: Path, once: str) -> tuple[int, str]:
    """The exit code of a verb that gets a real SIGINT once a text stands in its results, and all that it said."""
    command = [sys.executable, "-m", "lengthwise", *arguments]
    # A shell starts what runs in its background with the signal ignored, which processes inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    signal.signal(signal.SIGINT, before)
    with running:
        end = time.monotonic() + 120
        while time.monotonic() < end and not (results.exists() and once in results.read_text()):
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=300)
    return running.returncode, said
