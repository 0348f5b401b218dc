"""Laws about the order of time: what an output may depend on, and what going on from a state means."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lengthwise.contract import StateTree, map_state, state_tensors
from lengthwise.laws.law import Breach, Case, Law, equal
from lengthwise.laws.subject import Subject


def changed_after(subject: Subject, case: Case) -> Iterable[tuple[int, torch.Tensor]]:
    """(t, input that differs from the case's at every token from t on), for a few t."""
    x, other = subject.inputs(case), subject.inputs(case, salt=1)
    for t in sorted({1, case.length // 2, case.length - 1}):
        if 0 < t < case.length:
            yield t, torch.cat([x[:, :t], other[:, t:]], dim=1)


@torch.no_grad()
def causal(subject: Subject, case: Case) -> None:
    """No output depends on a later input."""
    expected, _ = subject.run(subject.inputs(case))
    for t, changed in changed_after(subject, case):
        y, _ = subject.run(changed)
        equal(y[:, :t], expected[:, :t], subject.tolerance, f"outputs before token {t} change with what follows")


@torch.no_grad()
def receptive_field(subject: Subject, case: Case) -> None:
    """An output depends on no input further back than declared."""
    reach = int(subject.declared("receptive_field"))
    x, other = subject.inputs(case), subject.inputs(case, salt=1)
    expected, _ = subject.run(x)
    t = case.length - reach
    if t > 0:
        y, _ = subject.run(torch.cat([other[:, :t], x[:, t:]], dim=1))
        what = f"the declared receptive field is {reach}, and the last output depends on inputs further back"
        equal(y[:, -1:], expected[:, -1:], subject.tolerance, what)


def cut_cases(subject: Subject) -> Iterable[Case]:
    """One cut, many cuts, token by token, around a chunk, and packed rows cut anywhere."""
    chunk = subject.chunk
    for cut in (6, 1, 11):
        yield Case(cuts=(cut,))
    yield Case(cuts=(2, 3, 7))
    yield Case(cuts=tuple(range(1, 12)))
    yield Case(batch=1, length=2 * chunk + 3, cuts=(chunk - 1, chunk + 1))
    if "packed" not in lacking(subject):
        packed = ((5, 1, 6), (2, 8, 2))
        for cuts in ((5,), (6,), (2, 7, 10), tuple(range(1, 12))):
            yield Case(documents=packed, cuts=cuts)


@torch.no_grad()
def resumable(subject: Subject, case: Case) -> None:
    """Cut anywhere and going on from the state gives what the whole gives."""
    x = subject.inputs(case)
    layout = case.layout
    expected, _ = subject.run(x, None, layout)
    state: StateTree = None
    for begin, end in case.pieces:
        part = None if layout is None else layout.slice(begin, end)
        y, state = subject.run(x[:, begin:end], state, part)
        what = f"tokens {begin} to {end - 1}, gone on to from a state, against the same in one piece"
        equal(y, expected[:, begin:end], subject.tolerance, what, begin)


@torch.no_grad()
def value(subject: Subject, case: Case) -> None:
    """Going on from a state changes neither the state nor what it gives later."""
    cut = case.cuts[0]
    more = [subject.inputs(case, length=case.length - cut, salt=salt) for salt in (0, 1, 2)]
    _, state = subject.run(subject.inputs(case, length=cut))
    before = [t.clone() for t in state_tensors(state)]
    first, first_state = subject.run(more[0], state)
    subject.run(more[1], state)
    for old, new in zip(before, state_tensors(state), strict=True):
        equal(new, old, 0.0, "a tensor of the state changed when the state was gone on from")
    again, _ = subject.run(more[0], state)
    equal(again, first, subject.tolerance, "the same state continued twice with the same input")
    # The first branch has to be its own after the second went on from the same state: a shared buffer shows here.
    branch, _ = subject.run(more[2], first_state)
    apart, _ = subject.run(more[2], fresh(subject.run(more[0], fresh(state))[1]))
    equal(branch, apart, subject.tolerance, "a branch of a state, after another branch went on from the same state")


def fresh(state: StateTree) -> StateTree:
    """The state in memory of its own."""
    return map_state(torch.clone, state)


def lacking(subject: Subject) -> dict[str, str]:
    """The laws that ask for something the module doesn't have, with what it is."""
    return getattr(subject.module, "lacks", {})


def _not_causal(subject: Subject) -> str | None:
    return None if subject.causal else "declared not causal"


def no_state(subject: Subject) -> str | None:
    """Why laws about states ask nothing: the module declares itself not causal, and gives no state."""
    if subject.causal:
        return None
    state = subject.run(subject.inputs(Case()))[1]
    if state is not None:
        raise Breach(f"a module that isn't causal has no state to go on from; it returned a {type(state).__name__}")
    return "not causal, so without a state"


def _no_limit(subject: Subject) -> str | None:
    return None if subject.declared("receptive_field") is not None else "none declared"


def _reaches(subject: Subject) -> Iterable[Case]:
    reach = int(subject.declared("receptive_field"))
    return [Case(length=reach + 1), Case(length=2 * reach + 5)]


LAWS = [
    Law(
        "causal",
        "no output depends on a later input",
        lambda s: [Case(), Case(batch=1, length=s.chunk + 3)],
        causal,
        _not_causal,
    ),
    Law(
        "receptive_field",
        "no output depends on an input further back than declared",
        _reaches,
        receptive_field,
        _no_limit,
    ),
    Law(
        "resumable",
        "cut anywhere and gone on from the state, the sequence gives what it gives whole",
        cut_cases,
        resumable,
        no_state,
    ),
    Law(
        "value",
        "a state continued twice gives the same twice: going on never changes it",
        lambda s: [Case(length=9, cuts=(5,)), Case(length=6, cuts=(5,)), Case(batch=1, length=20, cuts=(3,))],  # noqa: ARG005
        value,
        no_state,
    ),
]
