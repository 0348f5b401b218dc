"""How a width is divided among heads."""

from __future__ import annotations

from lengthwise.errors import InputError


def default_heads(dim: int, head_dim: int = 64) -> int:
    """The number of heads that divides `dim` into heads of an even width nearest to `head_dim`."""
    if dim % 2:
        return 1
    near = (width for away in range(head_dim + 1) for width in (head_dim + away, head_dim - away))
    return dim // next(width for width in near if width > 0 and width % 2 == 0 and dim % width == 0)


def check_heads(dim: int, heads: int | None, kv_heads: int | None = None) -> tuple[int, int]:
    """The numbers of query heads and of key-value heads, `heads` chosen where it is None and `kv_heads` equal to it.

    Raises InputError where the width can't be divided among them.
    """
    heads = default_heads(dim) if heads is None else heads
    if heads < 1 or dim % heads:
        raise InputError(f"heads must divide dim: got heads={heads} and dim={dim}; {default_heads(dim)} would do")
    kv_heads = heads if kv_heads is None else kv_heads
    if kv_heads < 1 or heads % kv_heads:
        raise InputError(f"kv_heads must divide heads: got kv_heads={kv_heads} and heads={heads}")
    return heads, kv_heads
