"""What all plots of a report share: a colour and a marker for each candidate, axes, and where labels go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lengthwise.reports.numbers import show_length

PALETTE = ("#3b6fd4", "#e07b16", "#1a936f", "#c2417f", "#7d5bc4", "#c8392b", "#2aa7c9", "#8a6d3b", "#6b7a1f", "#5d6673")
"""Colours told apart by eyes of every kind, in the order of the candidates. They begin again after the last."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down", "star", "pentagon", "hexagon")
INK, FAINT, GRID = "#1f2733", "#667085", "#e8ebf0"
FONT = "Inter, 'Segoe UI', system-ui, -apple-system, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"
HEIGHT = 340
"""Height of a plot, in pixels, margins included."""

MARGIN = {"l": 58, "r": 128, "t": 12, "b": 46}
LINE_HEIGHT = 16


@dataclass(frozen=True)
class Style:
    """How a candidate is drawn, everywhere in the report."""

    colour: str
    symbol: str
    dash: str = "solid"


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each candidate, by its place."""
    return {name: Style(PALETTE[i % len(PALETTE)], SYMBOLS[i % len(SYMBOLS)]) for i, name in enumerate(names)}


def length_axis(lengths: Sequence[int], title: str) -> dict[str, Any]:
    """A logarithmic axis of lengths, ticked at the lengths that were measured."""
    low, high = math.log10(max(1, min(lengths))), math.log10(max(lengths))
    pad = 0.04 * max(high - low, 0.5)
    shown = thinned(sorted(set(lengths)), (high - low + 2 * pad) / 8)
    return {
        **plain_axis(title),
        "type": "log",
        "range": [low - pad, high + pad],
        "tickvals": shown,
        "ticktext": [show_length(v) for v in shown],
        "showgrid": False,
    }


def thinned(values: Sequence[int], gap: float) -> list[int]:
    """Tick values at least `gap` decades apart, the last one always among them."""
    kept: list[int] = []
    for value in reversed(values):
        if not kept or math.log10(kept[-1]) - math.log10(max(1, value)) >= gap:
            kept.append(value)
    return kept[::-1]


def plain_axis(title: str) -> dict[str, Any]:
    """A linear axis without decoration."""
    return {
        "title": {"text": title, "font": {"size": 12, "color": FAINT}, "standoff": 8},
        "tickfont": {"size": 12, "color": FAINT},
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "fixedrange": True,
        "automargin": True,
    }


def value_axis(values: Sequence[float], title: str, show: Any, log: bool, floor: float | None = None) -> dict[str, Any]:
    """The axis of the measured values, with ticks written as people read them.

    floor: a value that the axis must reach down to, where it is linear.
    """
    positive = [v for v in values if v > 0]
    if log and positive:
        return log_axis(positive, title, show)
    low, high = min(values), max(values)
    low = low if floor is None else min(low, floor)
    pad = 0.08 * max(high - low, 1e-9)
    return {**plain_axis(title), "range": [low - pad, high + pad], "nticks": 6}


def log_axis(values: Sequence[float], title: str, show: Any) -> dict[str, Any]:
    """A logarithmic axis with three to seven round ticks. Sizes in bytes step by powers of two."""
    low, high = math.log10(min(values)), math.log10(max(values))
    if high - low < 0.3:
        low, high = low - 0.15, high + 0.15
    pad = 0.07 * (high - low)
    low, high = low - pad, high + pad
    if title.startswith("bytes"):
        exponents = range(math.ceil(low / math.log10(2)), math.floor(high / math.log10(2)) + 1)
        candidates = [2.0**e for e in exponents]
        step = max(1, math.ceil(len(candidates) / 6))
        ticks = candidates[::step]
    else:
        ticks = round_ticks(low, high)
    axis = {"type": "log", "range": [low, high], "tickvals": ticks, "ticktext": [without_zeros(show(t)) for t in ticks]}
    return {**plain_axis(title if not title.startswith(("bytes", "seconds")) else ""), **axis}


def without_zeros(text: str) -> str:
    """A number as text without zeros at the end of its fraction."""
    number, _, unit = text.partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}".strip()


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two exponents of ten: the finest of some series that has at most six of them there."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks: list[float] = []
    for digits in (
        (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
        (1, 1.5, 2, 3, 4, 6, 8),
        (1, 2, 5),
        (1, 3),
        (1,),
    ):
        ticks = [d * 10.0**e for e in decades for d in digits if low <= math.log10(d) + e <= high]
        if len(ticks) <= 6:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 6)]


def spread(heights: Sequence[float], gap: float, top: float = math.inf) -> list[float]:
    """Heights moved as little as needed so that neighbours are `gap` apart, and none is above `top`."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[tuple[float, list[int]]] = []
    for i in order:
        centre, members = heights[i], [i]
        while groups and groups[-1][0] + gap * (len(groups[-1][1]) + len(members)) / 2 > centre:
            below, others = groups.pop()
            members = others + members
            centre = (below * len(others) + centre * (len(members) - len(others))) / len(members)
        groups.append((centre, members))
    placed = list(heights)
    for centre, members in groups:
        for rank, i in enumerate(members):
            placed[i] = centre + gap * (rank - (len(members) - 1) / 2)
    limit = top
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


def fraction(axis: dict[str, Any], value: float) -> float:
    """Where a value lies on an axis, from 0 to 1."""
    low, high = axis["range"]
    at = math.log10(value) if axis.get("type") == "log" else value
    return (at - low) / (high - low)


def end_labels(
    ends: dict[str, tuple[float, float]],
    x: dict[str, Any],
    y: dict[str, Any],
    look: Mapping[str, Style],
    height: int = HEIGHT,
) -> list[dict[str, Any]]:
    """The name of each candidate at the end of its line, in its colour, moved apart where they would touch."""
    area = height - MARGIN["t"] - MARGIN["b"]
    labels = []
    for at in {end for end, _ in ends.values()}:
        names = [name for name, (end, _) in ends.items() if end == at]
        wanted = [fraction(y, ends[name][1]) * area for name in names]
        for name, want, got in zip(names, wanted, spread(wanted, LINE_HEIGHT, area), strict=True):
            labels.append(label(name, ends[name], x, y, look[name].colour, shift=(9, got - want), anchor="left"))
    return labels


def label(
    name: str,
    point: tuple[float, float],
    x: dict[str, Any],
    y: dict[str, Any],
    colour: str,
    *,
    shift: tuple[float, float],
    anchor: str,
) -> dict[str, Any]:
    """A candidate's name beside a point."""
    place = [math.log10(v) if axis.get("type") == "log" else v for v, axis in zip(point, (x, y), strict=True)]
    return {
        "x": place[0], "y": place[1], "xshift": shift[0], "yshift": round(shift[1], 1), "xanchor": anchor,
        "yanchor": "middle", "text": short(name), "name": name, "showarrow": False,
        "font": {"size": 12.5, "color": colour},
    }  # fmt: skip


def short(name: str, limit: int = 24) -> str:
    """A name that fits beside a plot, as text that isn't taken for markup."""
    cut = name if len(name) <= limit else name[: limit - 1] + "…"
    return cut.replace("&", "&amp;").replace("<", "&lt;")


def layout(
    x: dict[str, Any],
    y: dict[str, Any],
    annotations: list[dict[str, Any]],
    height: int = HEIGHT,
    shapes: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The layout that every plot has."""
    return {
        "xaxis": x, "yaxis": y, "annotations": annotations, "shapes": list(shapes), "height": height, "margin": MARGIN,
        "showlegend": False, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": INK}, "hovermode": "closest",
        "hoverlabel": {"bgcolor": "white", "bordercolor": GRID, "font": {"family": FONT, "size": 12.5, "color": INK}},
    }  # fmt: skip


def vertical_line(at: float, text: str, x: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A dashed line at a length, and its label at the top."""
    place = math.log10(at) if x.get("type") == "log" else at
    line = {
        "type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "layer": "below",
        "line": {"color": "#b6bdc9", "width": 1, "dash": "dot"},
    }  # fmt: skip
    note = {
        "x": place, "y": 1, "yref": "paper", "text": text, "showarrow": False, "xanchor": "left", "yanchor": "top",
        "xshift": 4, "font": {"size": 11, "color": FAINT},
    }  # fmt: skip
    return line, note
