"""Errors that speak to the user: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave can't be used. The command line prints the message alone and exits with 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that isn't in a table, with the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")
