"""One line of a benchmark: what a fast form costs, against named peers and against the machine's limit."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """What was measured, all in one run.

    name: what ran, with its sizes, such as "selective_scan forward, L 1024, E 1024, N 16".
    seconds: median time of one call.
    ratios: for each named peer, how many times as fast as the peer this is (2.0: half the peer's time).
    limit: the reached share of the machine's limit, between 0 and 1; None where no limit applies.
    limit_name: which limit, such as "matrix products, float32" or "reading memory".
    note: what a reader must know beside the numbers.
    """

    name: str
    seconds: float
    ratios: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    limit_name: str = ""
    note: str = ""
