"""What `lengthwise lengths` reports of its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lengthwise.comparison.length_advice import LENGTH_MEASURES, lengths_of, models
from lengthwise.comparison.length_study import model_and_length, trained_at
from lengthwise.reports.measures import Column
from lengthwise.reports.numbers import show_count
from lengthwise.reports.plots import Panel, View, lines
from lengthwise.reports.records import Advice, Measurement, Results, Settings, collect
from lengthwise.reports.report import Report
from lengthwise.reports.style import Style, styles

HEADINGS = {
    "bits_long": "long text",
    "bits_short": "short text",
    "context_gain": "gain",
    "pairs": "pairs",
    "repeats": "words again",
    "run_seconds": "time",
    "of_longest": "of longest",
}
"""The columns of the table."""

NOTES = {
    "bits_long": "Each model reads as many tokens as in training; the last of them, the same for all, are scored.",
    "bits_short": "The same tokens are scored, but no model reads more than the shortest length.",
    "context_gain": "Short text less long text: what a model saves by all the context that it was trained for.",
    "pairs": "The share of fragments that a model finds likelier than a twin with a fault. Guessing gives a half.",
    "repeats": "Bits per byte of words, from their third byte on, whose last showing lies 64 bytes or more back.",
    "run_seconds": "Seconds of training, without scoring.",
}
"""How the measures that are plotted against the length of training were taken."""

CONTEXT = (
    "The same held-out tokens are scored each time, one line for each length of training, up to that length. At one "
    "context a lower line is a better model."
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def length_report(results: Results, advice: Sequence[Advice], notice: str = "") -> Report:
    """Everything that was measured, a row for each model and length. `notice` says what is missing, where something
    is."""
    told = with_relative_time(results)
    measured = {m.measure for m in told.measurements}
    return Report(
        told,
        title="Which length to train at?",
        lead=lead(results.settings),
        advice=advice,
        columns=[Column(LENGTH_MEASURES[key], None, text) for key, text in HEADINGS.items() if key in measured],
        rows=told.names,
        panels=length_panels(told),
        looks=looks(told),
        measures=LENGTH_MEASURES,
        notice=notice,
    )


def lead(settings: Settings | None) -> str:
    """One line on what was studied."""
    if settings is None:
        return ""
    options, data = settings.options, settings.data
    parts = [
        f"Trained on {data.get('name', 'data')} ({show_count(data.get('train_tokens', 0))} tokens)",
        settings.recipe.get("training", ""),
        f"equal {options.get('mode')} in every update",
        f"about {options.get('parameters')} parameters each",
        settings.date[:10],
    ]
    return " · ".join(part for part in parts if part)


def with_relative_time(results: Results) -> Results:
    """The results and, for every run, its time over that of the same model and seed at the longest length."""
    derived = []
    for model in models(results):
        keys = [trained_at(model, n) for n in lengths_of(results, model)]
        longest = results.seeds(keys[-1], "run_seconds")
        for key in keys:
            for seed, taken in results.seeds(key, "run_seconds").items():
                if seed in longest:
                    share = taken.value / longest[seed].value
                    derived.append(Measurement(key, seed, "of_longest", share))
    return replace(results, measurements=[*results.measurements, *derived])


def looks(results: Results) -> dict[str, Style]:
    """The colour of a row is that of its model; the dash tells its length."""
    names = list(dict.fromkeys(model_and_length(key)[0] for key in results.candidates))
    colours, seen, found = styles(names), dict.fromkeys(names, 0), {}
    for key in results.candidates:
        name = model_and_length(key)[0]
        found[key] = replace(colours[name], dash=DASHES[seen[name] % len(DASHES)])
        seen[name] += 1
    return found


def length_panels(results: Results) -> list[Panel]:
    """The measures against the length of training, then bits per byte against context."""
    found, whole = [], by_length(results)
    for key, note in NOTES.items():
        measure = LENGTH_MEASURES[key]
        figure = lines(whole, key, "tokens of a training window (log scale)", log=False, measures=LENGTH_MEASURES)
        if figure is not None:
            view = View("", figure, best_sentence(results, key))
            found.append(Panel(key.replace("_", "-"), measure.title, (view,), note))
    views = tuple(v for model in models(results) if (v := context_view(results, model)) is not None)
    if views:
        found.append(Panel("context", "Does more context still help?", views, CONTEXT, wide=True))
    return found


def context_view(results: Results, model: str) -> View | None:
    """Bits per byte of one model against context, one line for each length of training."""
    look = {key: style for key, style in looks(results).items() if model_and_length(key)[0] == model}
    figure = lines(results, "bits_at_context", "tokens read (log scale)", log=False, look=look)
    longest = trained_at(model, lengths_of(results, model)[-1])
    at = results.lengths("bits_at_context", longest)
    if figure is None or not at:
        return None
    gain = results.change(longest, "bits_at_context", at[-1], at[0])
    said = (
        f"{longest}: {gain.value:.2f} ± {gain.error:.2f} bits per byte saved from {at[0]} to {at[-1]} tokens."
        if gain
        else ""
    )
    return View(model, figure, said)


def by_length(results: Results) -> Results:
    """The models as candidates, with what was measured of each length at that length."""
    moved = []
    for m in results.measurements:
        if m.at is None:
            name, length = model_and_length(m.candidate)
            moved.append(replace(m, candidate=name, at=length))
    named = [replace(c, name=model_and_length(key)[0]) for key, c in results.candidates.items()]
    return collect([*named, *moved])


def best_sentence(results: Results, key: str) -> str:
    """The best length of each model."""
    measure, said = LENGTH_MEASURES[key], []
    sign = 1 if measure.lower_is_better else -1
    for model in models(results):
        found = {n: v.value for n in lengths_of(results, model) if (v := results.value(trained_at(model, n), key))}
        if found:
            best = min(found, key=lambda n: sign * found[n])
            said.append(f"{trained_at(model, best)} ({measure.show(found[best])})")
    return f"{'Fastest' if key == 'run_seconds' else 'Best'}: {', '.join(said)}."
