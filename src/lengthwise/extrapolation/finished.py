"""What of a study is finished, and what is left."""

from __future__ import annotations

from lengthwise.extrapolation.plan import Plan
from lengthwise.extrapolation.series import Series
from lengthwise.reports.records import Finished, Record, Results

TRAINED, MEASURED = "training", "measuring"
"""What can be finished: the training of a model, and the measuring of a series."""


def unfinished(results: Results, plan: Plan) -> list[str]:
    """The series that haven't been measured with every seed, but for those of models whose training failed."""
    wanted = [(s.name, how, seed) for s in plan.subjects for how in s.scalings for seed in plan.options.seeds]
    left = [
        Series(model, how).name
        for model, how, seed in wanted
        if Finished(Series(model, how).name, seed, MEASURED) not in results.finished
        and not failed(results, model, seed)
    ]
    return list(dict.fromkeys(left))


def failed(results: Results, model: str, seed: int) -> bool:
    """Whether a model's training with a seed ended without a model."""
    trained = any(m.measure == "train_rate" and (m.candidate, m.seed) == (model, seed) for m in results.measurements)
    return Finished(model, seed, TRAINED) in results.finished and not trained


def finished_of(results: Results, plan: Plan) -> list[Record]:
    """The results of an earlier run without what it had only begun."""
    trained = {(f.candidate, f.seed) for f in results.finished if f.stage == TRAINED}
    measured = {(f.candidate, f.seed) for f in results.finished if f.stage == MEASURED}
    whole = {name for name, _ in measured}
    return [
        results.settings or plan.settings,
        *results.candidates.values(),
        *(p for p in results.training if (p.candidate, p.seed) in trained),
        *(
            m
            for m in results.measurements
            if (m.candidate, m.seed) in (trained if m.measure == "train_rate" else measured)
        ),
        *(s for s in results.skipped if s.candidate in whole or s.at is None),
        *results.finished,
    ]
