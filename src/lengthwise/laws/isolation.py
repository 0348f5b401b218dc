"""Laws about what must not mix: documents of a row, padding, rows of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from lengthwise.contract import Layout, StateTree, map_state
from lengthwise.laws.law import Case, Law, equal
from lengthwise.laws.subject import Subject

PACKED = ((4, 1, 7), (9, 3))
"""Documents of several lengths, one of a single token."""

EMPTY = ((0, 3, 0, 0, 2, 0),)
"""Documents of no token, which take no place and end nothing."""

FAR_APART = 1e3
"""A scale at which the exponentials of one document overflow or vanish against those of another."""

PADDED = ((5,), (9,), (1,))
"""One document a row."""


def select(state: StateTree, index: torch.Tensor) -> StateTree:
    """The rows `index` of a state tree."""
    choose = getattr(state, "select", None)
    return choose(index) if choose else map_state(lambda t: t.index_select(0, index), state)


@torch.no_grad()
def packed(subject: Subject, case: Case) -> None:
    """Documents packed in one row give what each gives alone, and so does going on from the last."""
    x = subject.inputs(case)
    y, state = subject.run(x, None, case.layout)
    for r, row in enumerate(case.documents or ()):
        begin, last = 0, None
        for number, length in enumerate(row):
            if not length:
                continue
            end = begin + length
            alone, last = subject.run(x[r : r + 1, begin:end])
            _as_alone(y[r : r + 1, begin:end], alone, subject, f"document {number} of row {r}, packed against alone")
            begin = end
        if subject.goes_on and begin == x.shape[1]:
            more = subject.inputs(case, rows=1, length=1, salt=1)
            expected, _ = subject.run(more, last)
            got, _ = subject.run(more, select(state, torch.tensor([r])))
            _as_alone(got, expected, subject, f"going on after the last document of row {r}")


def _as_alone(got: torch.Tensor, alone: torch.Tensor, subject: Subject, what: str) -> None:
    if alone.isfinite().all():  # what overflows alone breaks another law
        equal(got, alone, subject.tolerance, what)


@torch.no_grad()
def padding(subject: Subject, case: Case) -> None:
    """Padding changes nothing, whatever is in it; after padding on the left the sequence goes on."""
    lengths = [row[0] for row in case.documents or ()]
    side: Literal["left", "right"] = "right" if case.padding == "right" else "left"
    layout = Layout.padded(lengths, side)
    x, other = subject.inputs(case), subject.inputs(case, salt=1)
    y, state = subject.run(x, None, layout)
    filler = other if subject.vocabulary is not None else 1000.0 * other
    mask = layout.padding if subject.vocabulary is not None else layout.padding[..., None]
    refilled, _ = subject.run(torch.where(mask, filler, x), None, layout)
    goes_on = subject.goes_on and side == "left"
    for r, length in enumerate(lengths):
        kept = slice(x.shape[1] - length, None) if side == "left" else slice(0, length)
        what = f"row {r} with other padding"
        equal(refilled[r : r + 1, kept], y[r : r + 1, kept], subject.tolerance, what)
        alone, last = subject.run(x[r : r + 1, kept])
        equal(y[r : r + 1, kept], alone, subject.tolerance, f"row {r}, padded against alone")
        if goes_on:
            more = subject.inputs(case, length=1, salt=2)
            expected, _ = subject.run(more[r : r + 1], last)
            positions = torch.tensor(lengths)[:, None]
            for after in (Layout(positions, torch.zeros_like(positions)), None):
                got, _ = subject.run(more, state, after)
                what = f"row {r}, gone on after its padding {'with' if after else 'without'} a layout"
                equal(got[r : r + 1], expected, subject.tolerance, what)


@torch.no_grad()
def rows(subject: Subject, case: Case) -> None:
    """Each row of a batch gives what it gives alone, and a state can be chosen from by rows."""
    x = subject.inputs(case)
    y, state = subject.run(x)
    for r in range(case.batch):
        alone, _ = subject.run(x[r : r + 1])
        equal(y[r : r + 1], alone, subject.tolerance, f"row {r} in a batch of {case.batch} against alone")
    if subject.goes_on:
        more = subject.inputs(case, length=1, salt=1)
        expected, _ = subject.run(more, state)
        index = torch.tensor([*reversed(range(case.batch)), 0])
        got, _ = subject.run(more[index], select(state, index))
        equal(got, expected[index], subject.tolerance, f"going on from the rows {index.tolist()} of the state")


@torch.no_grad()
def pattern(subject: Subject, case: Case) -> None:
    """No output depends on a token that the declared pattern doesn't show; who sees nothing gives one finite number."""
    x, other = subject.inputs(case), subject.inputs(case, salt=1)
    seen = shown(subject, case.width)
    y, _ = subject.run(x)
    for token in range(case.width):
        changed = x.clone()
        changed[:, token] = other[:, token]
        got, _ = subject.run(changed)
        blind = ~seen[:, token]
        blind[token] = False  # its query changes too
        equal(got[:, blind], y[:, blind], subject.tolerance, f"without having been shown token {token}, which changed")
    blind = ~seen.any(1)
    if blind.any():
        got, _ = subject.run(other)
        equal(got[:, blind], y[:, blind], subject.tolerance, "tokens that see nothing, whatever the input")


def shown(subject: Subject, length: int) -> torch.Tensor:
    """Whether each token is shown each of a document of `length`, to some head."""
    place = torch.arange(length)
    masks = [group.mask(place, place) for group in subject.declared("pattern").heads]
    seen = torch.stack(masks).any(0)
    return seen.tril() if subject.causal else seen


def packed_cases(subject: Subject) -> Iterable[Case]:
    """Short documents, empty ones, a start at every token, starts around a chunk, numbers far apart."""
    chunk = subject.chunk
    yield Case(documents=PACKED)
    yield Case(documents=((1, 1, 2),))
    yield Case(documents=((chunk + 1, 3),))
    yield Case(documents=EMPTY)
    yield Case(documents=((chunk, 1, chunk - 1),))
    yield Case(documents=((1,) * (chunk + 1),))
    yield Case(documents=PACKED, scale=FAR_APART)


LAWS = [
    Law("packed", "documents packed in one row give what each gives alone", packed_cases, packed),
    Law(
        "padding",
        "padding on the left or right changes nothing, whatever is in it",
        lambda s: [Case(documents=PADDED, padding=side) for side in ("left", "right")],  # noqa: ARG005
        padding,
    ),
    Law(
        "rows",
        "each row of a batch gives what it gives alone",
        lambda s: [Case(batch=3, length=8), Case(batch=2, length=1)],  # noqa: ARG005
        rows,
    ),
    Law(
        "pattern",
        "no output depends on a token that the declared pattern doesn't show, and who sees nothing gives one number",
        lambda s: [Case(batch=1, length=n) for n in (1, 9, 16)],  # noqa: ARG005
        pattern,
        lambda s: None if s.declared("pattern") is not None else "it declares no pattern",
    ),
]
