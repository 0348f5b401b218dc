"""What a model costs on given hardware, and what to choose for it."""

from lengthwise.planning.energy import Operations, count_operations, joules

__all__ = ["Operations", "count_operations", "joules"]
