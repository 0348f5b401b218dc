"""The plots of a report, as plain plotly figures, each with the sentence that says what it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lengthwise.reports.measures import MEASURES, NOISE, Measure, pareto_front
from lengthwise.reports.numbers import show_bits, show_length
from lengthwise.reports.records import Results, Value
from lengthwise.reports.style import (
    HEIGHT,
    MARGIN,
    Style,
    end_labels,
    fraction,
    label,
    layout,
    length_axis,
    plain_axis,
    short,
    styles,
    value_axis,
    vertical_line,
)
from lengthwise.reports.takeaways import (
    context_sentence,
    front_sentence,
    growth_sentence,
    recall_sentence,
    trained_length,
    training_sentence,
)

Figure = dict[str, Any]
SMOOTH = 5
"""Points of a training curve that are averaged for the eye."""


@dataclass(frozen=True)
class View:
    """One of the figures that a panel can show, and what its button says."""

    button: str
    figure: Figure
    takeaway: str


@dataclass(frozen=True)
class Panel:
    """A part of the report: a question, one or several views, and a note on how it was measured."""

    key: str
    title: str
    views: tuple[View, ...]
    note: str
    wide: bool = False


def panels(results: Results) -> list[Panel]:
    """Every panel for which something was measured."""
    makers = (quality_against_cost, context, recall, decoding, state, memory, prefill, training)
    return [panel for make in makers if (panel := make(results)) is not None]


def lines(
    results: Results,
    key: str,
    x_title: str,
    *,
    log: bool = True,
    floor: float | None = None,
    mark: bool = False,
    look: Mapping[str, Style] | None = None,
    measures: Mapping[str, Measure] = MEASURES,
) -> Figure | None:
    """A measure against length, one line a candidate, named at its end. `mark` shows the trained length.

    look: the candidates to draw, with how; all of them without. measures: what keys mean.
    """
    measure = measures[key]
    look = styles(list(results.candidates)) if look is None else look
    series = {name: _series(results, key, name) for name in results.names if name in look}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    values = [v.value for points in series.values() for _, v in points]
    x = length_axis([at for points in series.values() for at, _ in points], x_title)
    y = value_axis(values, measure.unit, measure.show, log, floor)
    data = [_line(name, points, measure, look[name]) for name, points in series.items()]
    ends = {name: (float(points[-1][0]), points[-1][1].value) for name, points in series.items()}
    notes, shapes = end_labels(ends, x, y, look), []
    trained = trained_length(results)
    if mark and trained and any(at > trained for points in series.values() for at, _ in points):
        line, note = vertical_line(trained, "trained length", x)
        shapes.append(line)
        notes.append(note)
    return {"data": data, "layout": layout(x, y, notes, shapes=shapes)}


def _series(results: Results, key: str, name: str) -> list[tuple[int, Value]]:
    found = ((at, results.value(name, key, at)) for at in results.lengths(key, name))
    return [(at, value) for at, value in found if value is not None]


def _line(name: str, points: Sequence[tuple[int, Value]], measure: Measure, style: Style) -> Figure:
    shown = [f"{measure.show(v.value)}{f' ± {v.error:.2f}' if measure.paired and v.error else ''}" for _, v in points]
    return {
        "type": "scatter", "mode": "lines+markers", "name": name, "x": [at for at, _ in points],
        "y": [v.value for _, v in points], "line": {"color": style.colour, "width": 2.2, "dash": style.dash},
        "marker": {"size": 7, "symbol": style.symbol, "color": style.colour},
        "customdata": [[show_length(at), text] for (at, _), text in zip(points, shown, strict=True)],
        "hovertemplate": f"<b>{short(name, 60)}</b><br>%{{customdata[0]}} tokens: %{{customdata[1]}}<extra></extra>",
    }  # fmt: skip


def quality_against_cost(results: Results) -> Panel | None:
    """Held-out bits per byte against each cost, with the Pareto front."""
    costs = (
        ("decode_seconds", "decoding time", "time per decoded token"),
        ("state_bytes", "state", "state"),
        ("train_peak_bytes", "training memory", "peak memory of a training step"),
        ("prefill_seconds", "reading time", "time to read a prompt"),
    )
    views = []
    for key, button, what in costs:
        at = results.common_length(key)
        points = _points(results, key, at)
        if at is None or len(points) < 2:
            continue
        front = pareto_front(points)
        figure = scatter(results, points, front, f"{what} at {show_length(at)} tokens", MEASURES[key].show)
        views.append(View(button, figure, front_sentence(results, points, front, what)))
    if not views:
        return None
    note = (
        "Lower left is better. The grey line is the Pareto front: no candidate beats one on it in both. Bars are two "
        "standard errors of the difference to the best candidate, taken pair by pair over the same held-out text: one "
        "whose bar reaches down to the best can't be told apart from it."
    )
    return Panel("quality", "Quality against cost", tuple(views), note, wide=True)


def _points(results: Results, key: str, at: int | None) -> dict[str, tuple[float, float]]:
    points = {}
    for name in results.names:
        cost, bits = results.value(name, key, at), results.value(name, "bits_per_byte")
        if cost is not None and bits is not None and cost.value > 0:
            points[name] = (cost.value, bits.value)
    return points


def scatter(
    results: Results,
    points: dict[str, tuple[float, float]],
    front: list[str],
    cost: str,
    show: Callable[[float], str],
) -> Figure:
    """Candidates by cost and loss, the front as a line, names beside the points."""
    look = styles(list(results.candidates))
    errors = {name: _error_to_best(results, name, min(points, key=lambda n: points[n][1])) for name in points}
    lows = [loss - errors[name] for name, (_, loss) in points.items()]
    highs = [loss + errors[name] for name, (_, loss) in points.items()]
    x = value_axis([c for c, _ in points.values()], "seconds", show, log=True)
    x["title"] = plain_axis(f"{cost} →")["title"]
    y = value_axis([*lows, *highs], "held-out bits per byte", show_bits, log=False)
    steps = [points[name] for name in front]
    line = {
        "type": "scatter", "mode": "lines", "x": [c for c, _ in steps], "y": [loss for _, loss in steps], "name": "",
        "line": {"color": "#d9dde5", "width": 6}, "hoverinfo": "skip",
    }  # fmt: skip
    data = [line]
    for name, (price, loss) in points.items():
        error = (results.value(name, "bits_per_byte") or Value(0)).error
        shown = [[show(price), f"{loss:.3f} ± {error:.3f}"]]
        data.append({
            "type": "scatter", "mode": "markers", "name": name, "x": [price], "y": [loss], "customdata": shown,
            "marker": {"size": 13, "symbol": look[name].symbol, "color": look[name].colour,
                       "line": {"color": "white", "width": 1.5}},
            "error_y": {"array": [errors[name]], "color": look[name].colour, "thickness": 1, "width": 0},
            "hovertemplate": f"<b>{short(name, 60)}</b><br>%{{customdata[0]}}<br>"
                             "%{customdata[1]} bits per byte<extra></extra>",
        })  # fmt: skip
    height = HEIGHT + 60
    return {"data": data, "layout": layout(x, y, _point_labels(points, x, y, look, height), height)}


def _error_to_best(results: Results, name: str, best: str) -> float:
    """Two standard errors of the difference to the best candidate."""
    gap = results.difference(name, best, "bits_per_byte")
    return NOISE * gap.error if gap is not None and name != best else 0.0


def _point_labels(
    points: dict[str, tuple[float, float]], x: Figure, y: Figure, look: dict[str, Style], height: int
) -> list[Figure]:
    """Names beside points, each on the side where it touches least."""
    width, tall = 900, height - MARGIN["t"] - MARGIN["b"]
    centres = {name: (fraction(x, c) * width, fraction(y, loss) * tall) for name, (c, loss) in points.items()}
    taken = [(px - 9, py - 9, px + 9, py + 9) for px, py in centres.values()]
    labels = []
    for name, (px, py) in centres.items():
        extent = 7.2 * len(short(name))
        sides = {
            (12, 0, "left"): (px + 12, py - 8, px + 12 + extent, py + 8),
            (-12, 0, "right"): (px - 12 - extent, py - 8, px - 12, py + 8),
            (10, 16, "left"): (px + 10, py + 8, px + 10 + extent, py + 24),
            (10, -16, "left"): (px + 10, py - 24, px + 10 + extent, py - 8),
        }
        side, box = min(sides.items(), key=lambda item: _overlap(item[1], taken, width))
        taken.append(box)
        labels.append(label(name, points[name], x, y, look[name].colour, shift=side[:2], anchor=side[2]))
    return labels


def _overlap(box: tuple[float, ...], others: Sequence[tuple[float, ...]], width: float) -> float:
    left, bottom, right, top = box
    outside = max(0.0, -left) + max(0.0, right - width - 100)
    shared = sum(
        max(0.0, min(right, r) - max(left, le)) * max(0.0, min(top, t) - max(bottom, b)) for le, b, r, t in others
    )
    return shared + 1000 * outside


def context(results: Results) -> Panel | None:
    """Bits per byte of the same tokens, given more and more of the text before them."""
    figure = lines(results, "bits_at_context", "tokens of context before the token (log scale)", log=False, mark=True)
    if figure is None:
        return None
    note = (
        "The same held-out tokens are scored each time; only the text that may be read before them grows. A line "
        "that keeps falling says that more context still helps; one that rises beyond the trained length says that the "
        "model breaks down there."
    )
    view = View("", figure, context_sentence(results))
    return Panel("context", "Does more context still help?", (view,), note)


def recall(results: Results) -> Panel | None:
    """Bits saved when a passage comes again, against how far back its first showing lies."""
    figure = lines(
        results, "recall", "distance back to the first showing, in tokens (log scale)", log=False, floor=0.0, mark=True
    )
    if figure is None:
        return None
    note = (
        "Nothing was trained for this. A held-out passage is scored after its natural context, and after the same "
        "context in which the passage itself already stood that far back. The difference is what the model recalls."
    )
    view = View("", figure, recall_sentence(results))
    return Panel("recall", "Can it look back?", (view,), note)


def decoding(results: Results) -> Panel | None:
    """Time per decoded token against context."""
    figure = lines(results, "decode_seconds", "tokens of context (log scale)")
    if figure is None:
        return None
    note = (
        "One row, one token after the other; candidates are timed in turn, medians. The state comes from reading text."
    )
    view = View("", figure, growth_sentence(results, "decode_seconds", "the time of a token"))
    return Panel("decoding", "Time per decoded token", (view,), note)


def state(results: Results) -> Panel | None:
    """Bytes of the state against context."""
    figure = lines(results, "state_bytes", "tokens of context (log scale)")
    if figure is None:
        return None
    view = View("", figure, growth_sentence(results, "state_bytes", "the state of one sequence"))
    return Panel("state", "State of one sequence", (view,), "What must be kept for each conversation or document.")


def memory(results: Results) -> Panel | None:
    """Peak memory of a training step and of reading a prompt, against length."""
    views = []
    for key, button, what in (
        ("train_peak_bytes", "training step", "the memory of a training step"),
        ("prefill_peak_bytes", "reading a prompt", "the memory of reading a prompt at once"),
    ):
        figure = lines(results, key, "tokens (log scale)")
        if figure is not None:
            views.append(View(button, figure, growth_sentence(results, key, what)))
    note = "The largest sum of tensors alive at one moment, for one row, without the weights and the optimiser."
    return Panel("memory", "Peak memory", tuple(views), note) if views else None


def prefill(results: Results) -> Panel | None:
    """Seconds to read a prompt of each length, in chunks."""
    figure = lines(results, "prefill_seconds", "tokens of prompt (log scale)")
    if figure is None:
        return None
    view = View("", figure, growth_sentence(results, "prefill_seconds", "the time to read a prompt"))
    return Panel("prefill", "Time to read a prompt", (view,), "One row, read in chunks that carry the state on.")


def training(results: Results, look: Mapping[str, Style] | None = None) -> Panel | None:
    """Training loss against seconds, and against tokens. `look` is how the candidates are drawn."""
    if not results.training:
        return None
    look = styles(list(results.candidates)) if look is None else look
    views = []
    for button, title in (("seconds", "seconds of training"), ("tokens", "tokens of training")):
        views.append(View(f"against {button}", _curves(results, look, button, title), training_sentence(results)))
    note = f"Bits per byte of the training text, a moving average over {SMOOTH} points. Thin lines: further seeds."
    return Panel("training", "Training", tuple(views), note)


def _curves(results: Results, look: Mapping[str, Style], by: str, title: str) -> Figure:
    data, ends = [], {}
    points = [p for p in results.training if p.candidate in look]
    first_seed = min(p.seed for p in points)
    for name in look:
        for seed in sorted({p.seed for p in points if p.candidate == name}):
            found = sorted((getattr(p, by), p.bits) for p in points if (p.candidate, p.seed) == (name, seed))
            xs = [at for at, _ in found]
            ys = [fmean(bits for _, bits in found[max(0, i - SMOOTH + 1) : i + 1]) for i in range(len(found))]
            data.append({
                "type": "scatter", "mode": "lines", "name": name, "x": xs, "y": ys,
                "line": {"color": look[name].colour, "width": 2.2 if seed == first_seed else 0.8},
                "hovertemplate": f"<b>{short(name, 60)}</b><br>%{{x:,.0f}} {by}: %{{y:.2f}}<extra></extra>",
            })  # fmt: skip
            if seed == first_seed:
                ends[name] = (xs[-1], ys[-1])
    reach = max(p[0] for p in ends.values())
    x = {**plain_axis(title), "range": [0, reach * 1.01], "showgrid": False, "nticks": 6}
    late = [p.bits for p in points if getattr(p, by) > 0.05 * reach] or [p.bits for p in points]
    y = value_axis(late, "bits per byte", show_bits, log=False)
    aligned = {name: (end[0] if by == "tokens" else reach, end[1]) for name, end in ends.items()}
    return {"data": data, "layout": layout(x, y, end_labels(aligned, x, y, look))}
