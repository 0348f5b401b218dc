"""Hold a module to the laws, and shrink what breaks one to the smallest case."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from lengthwise.errors import unknown
from lengthwise.laws import isolation, lifetime, numerics, order
from lengthwise.laws.law import Breach, Case, Law, LawBroken, Report, Verdict, smaller
from lengthwise.laws.subject import Subject, Target

LAWS: dict[str, Law] = {law.name: law for law in [*order.LAWS, *isolation.LAWS, *numerics.LAWS, *lifetime.LAWS]}
"""Every law by its name."""

SHRINKING_SECONDS = 20.0
"""Shrinking stops after this long, with the smallest case found by then."""


def check(target: Target, *, dim: int | None = None, laws: Sequence[str] | None = None, seed: int = 0) -> Report:
    """Hold a module to the laws.

    target: a module, or a class or function that makes one; one with a `dim` argument is given `dim` and is also tried
        at smaller widths when it breaks a law.
    dim: width of the input; by default what the module says, or 16.
    laws: names out of `LAWS`; all by default.
    seed: of the parameters and inputs.

    Returns the report. Raises LawBroken, naming the law and the smallest case found, at the first law that is broken,
    and InputError where `laws` has a name that isn't a law.
    """
    subject = Subject(target, dim, seed)
    verdicts = []
    for verdict in examine(subject, laws):
        if verdict.outcome == "broken":
            raise LawBroken(verdict.law, verdict.message, verdict.case or Case())
        verdicts.append(verdict)
    return Report(subject.name_of(target), tuple(verdicts))


def examine(
    subject: Subject, laws: Sequence[str] | None = None, on_start: Callable[[Law], None] | None = None
) -> Iterator[Verdict]:
    """The verdict on each law, one after the other, whatever the verdicts are."""
    for name in laws or LAWS:
        if name not in LAWS:
            raise unknown("law", name, LAWS)
    for law in [law for name, law in LAWS.items() if not laws or name in laws]:
        if on_start:
            on_start(law)
        began = time.perf_counter()
        verdict = judge(subject, law)
        if law.name == "resumable" and verdict.outcome == "broken":
            subject.goes_on = False
        yield replace(verdict, seconds=time.perf_counter() - began)


def judge(subject: Subject, law: Law) -> Verdict:
    """The verdict on one law."""
    if law.name in order.lacking(subject):
        return Verdict(law.name, "does not apply", order.lacking(subject)[law.name])
    if law.name in subject.declared("breaks"):
        return Verdict(law.name, "excused", subject.declared("breaks")[law.name])
    tried = 0
    try:
        reason = law.applies(subject)
        if reason is not None:
            return Verdict(law.name, "does not apply", reason)
        for case in law.cases(subject):
            case = replace(case, seed=subject.seed)
            tried += 1
            message = breach(subject, law, case)
            if message is not None:
                smallest, words = shrink(subject, law, case, message)
                return Verdict(law.name, "broken", words, smallest, (case, message), tried)
    except Exception as error:
        return Verdict(law.name, "broken", _words(error), cases=tried)
    return Verdict(law.name, "holds", cases=tried)


def breach(subject: Subject, law: Law, case: Case) -> str | None:
    """What is wrong with the law on this case, or None. An exception of the module is a breach as well."""
    try:
        law.holds(subject, case)
    except Exception as error:
        return _words(error)
    return None


def _words(error: Exception) -> str:
    if isinstance(error, Breach):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"raises {type(error).__name__}: {lines[0] if lines else ''}"


def shrink(subject: Subject, law: Law, case: Case, message: str) -> tuple[Case, str]:
    """The smallest case found that breaks the law, and what it breaks with. Deterministic, but for the time limit."""
    until = time.perf_counter() + SHRINKING_SECONDS
    case, message = _shrink_shape(subject, law, case, message, until)
    if not subject.takes_dim:
        return case, message
    for dim in (1, 2, 4, 8):
        if dim >= subject.dim or time.perf_counter() > until:
            break
        with suppress(Exception):  # not every width makes a module: heads have to divide it
            narrow = subject.at(dim)
            found = breach(narrow, law, case)
            if found is not None and not found.startswith("raises"):
                case, message = _shrink_shape(narrow, law, case, found, until)
                return replace(case, dim=dim), message
    return case, message


def _shrink_shape(subject: Subject, law: Law, case: Case, message: str, until: float) -> tuple[Case, str]:
    shrunk = True
    while shrunk and time.perf_counter() < until:
        shrunk = False
        for candidate in smaller(case, law.fixed):
            found = breach(subject, law, candidate)
            if found is not None and found.startswith("raises") == message.startswith("raises"):
                case, message, shrunk = candidate, found, True
                break
    return case, message
