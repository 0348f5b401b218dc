"""The terminal that tables are printed to."""

from __future__ import annotations

import sys

from rich.console import Console

WIDTH = 160
"""Columns of a table that goes into a file or a pipe, where there is no terminal whose width would count."""


def console(stderr: bool = False) -> Console:
    """Standard output, or standard error where standard output is for JSON."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else WIDTH)
