"""The plots of a study, each with the sentence that says what it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lengthwise.extrapolation.columns import (
    BITS,
    GUESSED,
    KEYS,
    TOLERANCE,
    measures,
    recall_measure,
    usable,
)
from lengthwise.extrapolation.scoring import within
from lengthwise.extrapolation.series import beside, looks, scalings_in, series_of
from lengthwise.reports.measures import NOISE
from lengthwise.reports.numbers import show_length
from lengthwise.reports.plots import Figure, Panel, View, lines
from lengthwise.reports.plots import training as training_curves
from lengthwise.reports.records import Results
from lengthwise.reports.style import FAINT, Style
from lengthwise.reports.takeaways import listed, trained_length

AS_TRAINED = "as trained"
LENGTH_AXIS = "tokens of context (log scale)"
POSITION_AXIS = "position in the window, in tokens (log scale)"
RECALL_AXIS = "tokens from the question back to what is asked for (log scale)"

Told = Callable[[Results, list[str]], str]
"""The sentence about some series."""


def panels(results: Results) -> list[Panel]:
    """Every panel for which something was measured."""
    makers = (context, position, recall, training)
    return [panel for make in makers if (panel := make(results)) is not None]


def views(
    results: Results, key: str, x_title: str, told: Told, floor: float | None = None, level: float | None = None
) -> tuple[View, ...]:
    """A measure of the models as they were trained; and for each scaling, of those that it is for, with and without."""
    look, found = looks(list(results.candidates)), []
    for scaling in ("none", *scalings_in(results.names)):
        names = beside(results.names, scaling)
        shown: Mapping[str, Style] = {name: look[name] for name in names}
        figure = lines(results, key, x_title, log=False, floor=floor, mark=True, look=shown, measures=measures(results))
        if figure is None:
            continue
        if level is not None:
            add_level(figure, level, "chance")
        found.append(View(AS_TRAINED if scaling == "none" else scaling, figure, told(results, names)))
    return tuple(found)


def add_level(figure: Figure, at: float, text: str) -> None:
    """Draw a dotted line at a height across a figure, with its name."""
    line: dict[str, Any] = {
        "type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": at, "y1": at, "layer": "below",
        "line": {"color": FAINT, "width": 1, "dash": "dot"},
    }  # fmt: skip
    note = {
        "x": 0, "xref": "paper", "y": at, "text": text, "showarrow": False, "xanchor": "left", "yanchor": "bottom",
        "font": {"size": 11, "color": FAINT},
    }  # fmt: skip
    figure["layout"]["shapes"].append(line)
    figure["layout"]["annotations"].append(note)


def context(results: Results) -> Panel | None:
    """Bits per byte of the same bytes, given more and more of the text before them."""
    drawn = views(results, BITS.key, LENGTH_AXIS, context_sentence)
    note = (
        "The same bytes at the end of each window are scored; only the text before them grows. A line that stays level "
        "or falls carries on beyond the trained length; one that rises breaks down there. A scaling is set for each "
        "length anew, and up to the trained one it changes nothing."
    )
    return Panel("context", "How far does it carry?", drawn, note, wide=True) if drawn else None


def context_sentence(results: Results, names: list[str]) -> str:
    """Which series stay usable up to the longest context, and where the others end."""
    longest, trained = results.lengths(BITS.key)[-1], trained_length(results)
    if longest == trained:
        return ""
    reach = {name: at for name in names if (at := usable(results, name)) is not None}
    whole = [name for name, at in reach.items() if at == longest]
    parts = [f"{listed(whole)} up to {show_length(longest)}"] if whole else []
    for at in sorted(set(reach.values()) - {longest}, reverse=True):
        parts.append(f"{listed([name for name, end in reach.items() if end == at])} up to {show_length(at)}")
    return f"Within {TOLERANCE} bits per byte of the trained length: {'; '.join(parts)}." if parts else ""


def position(results: Results) -> Panel | None:
    """Bits per byte at each range of positions of the longest windows."""
    lengths = results.lengths(BITS.key)
    if not lengths:
        return None
    drawn = views(results, within(lengths[-1]), POSITION_AXIS, position_sentence)
    note = (
        f"Windows of {show_length(lengths[-1])} tokens. Each point is the mean over the positions from the point "
        "before it up to its own. Other positions hold other bytes: what all lines have in common is the text's."
    )
    return Panel("position", "Where in a long window does it fail?", drawn, note) if drawn else None


def position_sentence(results: Results, names: list[str]) -> str:
    """Which series are clearly worse late in the longest windows than at the trained length."""
    key, trained = within(results.lengths(BITS.key)[-1]), trained_length(results)
    worse, known = [], False
    for name in names:
        at = results.lengths(key, name)
        change = results.change(name, key, trained, at[-1]) if trained in at else None
        known = known or change is not None
        if change is not None and change.value > max(TOLERANCE, NOISE * change.error):
            worse.append(f"{name} ({change.value:+.2f})")
    if not known or trained == results.lengths(key)[-1]:
        return ""
    if not worse:
        return "Late positions are predicted about as well as those within the trained length."
    return f"Worse at the end of the window than just before the trained length: {listed(worse)} bits per byte."


def recall(results: Results) -> Panel | None:
    """Recall against distance."""
    measure = recall_measure(results)
    if measure is None:
        return None
    chance = GUESSED[measure.key]
    drawn = views(results, measure.key, RECALL_AXIS, recall_sentence, floor=0.0, level=chance)
    note = (
        "A control byte stands at the beginning of a stretch of held-out text, another asks for it at the end, and the "
        "likeliest of the 16 that it could be counts as the answer. Half of the rows in training, unless --keys says "
        "otherwise, have such questions."
        if measure is KEYS
        else "Nothing was trained for this. A string of random letters is scored at the end of a stretch of text that "
        "begins with it, and of one that begins with another such string. The difference is what the model recalls."
    )
    return Panel("recall", "From how far back does it recall?", drawn, note) if drawn else None


def recall_sentence(results: Results, names: list[str]) -> str:
    """Up to which distance each series is clearly above chance."""
    measure = recall_measure(results)
    if measure is None:
        return ""
    chance = GUESSED[measure.key]
    reach: dict[int, list[str]] = {}
    for name in names:
        above = [
            at
            for at in results.lengths(measure.key, name)
            if (v := results.value(name, measure.key, at)) is not None and v.value - NOISE * v.error > chance
        ]
        reach.setdefault(max(above, default=0), []).append(name)
    parts = [f"{listed(reach[at])} up to {show_length(at)}" for at in sorted(reach, reverse=True) if at]
    return f"Above chance: {'; '.join(parts)} tokens back." if parts else "Nobody recalls more than by chance."


def training(results: Results) -> Panel | None:
    """Training loss, of the models that were trained."""
    look = looks(list(results.candidates))
    return training_curves(results, {name: style for name, style in look.items() if series_of(name).scaling == "none"})
