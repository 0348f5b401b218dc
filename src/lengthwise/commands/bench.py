"""What the verb `bench` does: runs benchmarks and prints seconds and ratios."""

from __future__ import annotations

import importlib
import json as jsonlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from lengthwise.benches import BENCHES
from lengthwise.benches.row import Row
from lengthwise.errors import unknown
from lengthwise.reports.numbers import show_seconds, significant
from lengthwise.reports.terminal import console


def bench(ops: Sequence[str] = (), json: bool = False) -> int:
    """Run the benchmarks named, all without any, and print a table of rows, or JSON with machine and versions.

    Everything in a row was measured in the same run: the op, its peers and the machine's limit.
    """
    from lengthwise.machine import machine, versions
    from lengthwise.measure import matmul_rate, read_bandwidth

    for name in ops:
        if name not in BENCHES:
            raise unknown("benchmark", name, BENCHES)
    out = console(stderr=json)
    limits = {"matmul_flops_per_second": matmul_rate(), "read_bytes_per_second": read_bandwidth()}
    out.print(
        f"{machine()['processor']}, {machine()['threads']} threads: "
        f"matrix products {limits['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s in float32, "
        f"reading {limits['read_bytes_per_second'] / 1e9:.1f} GB/s",
        highlight=False,
    )
    measured: dict[str, list[Row]] = {}
    for name in dict.fromkeys(ops or BENCHES):
        with out.status(f"measuring {name}"):
            measured[name] = list(function(name)())
        out.print(rows_table(name, measured[name]))
    if json:
        rows = {name: [asdict(row) for row in rows] for name, rows in measured.items()}
        print(jsonlib.dumps({"machine": machine(), "versions": versions(), "limits": limits, "ops": rows}, indent=2))
    return 0


def function(name: str) -> Any:
    """The function that measures an op."""
    module, _, attribute = BENCHES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def rows_table(title: str, rows: Iterable[Row]) -> Table:
    """One row for each thing measured; the peers share a column, since each op has its own."""
    table = Table(
        escape(title), "median", "times as fast as", "of the machine's limit", header_style="bold", pad_edge=False
    )
    table.columns[1].justify = "right"
    for row in rows:
        ratios = "\n".join(f"{escape(peer)}: {significant(ratio, 3)}" for peer, ratio in row.ratios.items())
        limit = "" if row.limit is None else f"{row.limit:.0%} {escape(row.limit_name)}"
        name = escape(row.name) + (f"\n[dim]{escape(row.note)}[/dim]" if row.note else "")
        table.add_row(name, show_seconds(row.seconds), ratios, limit)
    return table
