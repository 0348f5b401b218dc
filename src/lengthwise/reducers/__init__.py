"""What makes a sequence shorter inside a model, and long again."""

from __future__ import annotations

from lengthwise.reducers.blocks import Blocks

REDUCERS: dict[str, type] = {"blocks": Blocks}
"""The shorter forms of a sequence by name."""
