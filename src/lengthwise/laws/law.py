"""What a law is, the case it is tried on, and what comes of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lengthwise.contract import Layout

Outcome = Literal["holds", "broken", "excused", "does not apply"]


@dataclass(frozen=True)
class Case:
    """The input that a law is tried on. Its numbers are drawn from `seed`, so a case is the same every time.

    batch, length: the shape of the input.
    cuts: where the sequence is cut into pieces, ascending.
    documents: lengths of the documents in each row, where rows are packed; overrides batch and length.
    padding: "left" or "right" where the documents are padded, one a row.
    dim: width of the module, where the case needs another than the one asked for.
    scale: the input is standard normal times this.
    form: the form of the ops that is compared with the reference.
    """

    batch: int = 2
    length: int = 12
    cuts: tuple[int, ...] = ()
    documents: tuple[tuple[int, ...], ...] | None = None
    padding: str | None = None
    dim: int | None = None
    scale: float = 1.0
    form: str | None = None
    seed: int = 0

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.batch if self.documents is None else len(self.documents)

    @property
    def width(self) -> int:
        """The number of tokens in a row, padding included."""
        return self.length if self.documents is None else max(map(sum, self.documents), default=0)

    @property
    def layout(self) -> Layout | None:
        """Where the tokens are, where rows are packed."""
        return None if self.documents is None else Layout.packed(self.documents)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Begin and end of each piece between the cuts."""
        edges = [0, *self.cuts, self.width]
        return list(itertools.pairwise(edges))

    def __str__(self) -> str:
        """The case in words: only what it sets."""
        said = [f"batch {self.rows}", f"length {self.width}"]
        if self.cuts:
            said.append("cut at " + ", ".join(map(str, self.cuts)))
        if self.documents is not None:
            lengths = " | ".join(", ".join(map(str, row)) for row in self.documents)
            said.append(f"{'rows' if self.padding else 'documents'} of {lengths}")
        if self.padding:
            said.append(f"padded on the {self.padding}")
        if self.scale != 1.0:
            said.append(f"inputs times {self.scale:g}")
        if self.form:
            said.append(f"form {self.form!r}")
        if self.dim is not None:
            said.append(f"dim {self.dim}")
        return ", ".join(said)


class Breach(Exception):
    """A law does not hold on a case; carries the message."""


class LawBroken(AssertionError):
    """A module breaks a law of the contract.

    law: the name of the law.
    message: what was expected and what came, with the numbers.
    case: the smallest case found on which it happens.
    """

    def __init__(self, law: str, message: str, case: Case):
        super().__init__(f"{law}: {message} (smallest case: {case})")
        self.law, self.message, self.case = law, message, case


@dataclass(frozen=True)
class Law:
    """One law: `holds(subject, case)` raises Breach where it is broken.

    says: the law in one sentence.
    cases: the cases to try, in order; depends on what the subject declares.
    applies: why the law asks nothing of the subject, or None where it does.
    fixed: fields of a case that shrinking leaves as they are.
    """

    name: str
    says: str
    cases: Callable[[Any], Iterable[Case]]
    holds: Callable[[Any, Case], None]
    applies: Callable[[Any], str | None] = lambda subject: None  # noqa: ARG005
    fixed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Verdict:
    """What came of one law.

    message: what is wrong on the smallest case found, or the reason where the law is excused or does not apply.
    case: the smallest case found. first: the case that broke the law first, and what was wrong on it.
    cases: how many cases were tried before shrinking.
    """

    law: str
    outcome: Outcome
    message: str = ""
    case: Case | None = None
    first: tuple[Case, str] | None = None
    cases: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """What came of every law, in the order of `LAWS`."""

    name: str
    verdicts: tuple[Verdict, ...] = field(default=())

    @property
    def broken(self) -> list[Verdict]:
        """The laws that don't hold."""
        return [v for v in self.verdicts if v.outcome == "broken"]

    def __getitem__(self, law: str) -> Verdict:
        return next(v for v in self.verdicts if v.law == law)

    def __str__(self) -> str:
        """One line per law."""
        width = max((len(v.law) for v in self.verdicts), default=0)
        lines = [f"{self.name}: {len(self.broken)} of {len(self.verdicts)} laws broken"]
        for v in self.verdicts:
            case = f" (smallest case: {v.case})" if v.case else ""
            lines.append(f"  {v.law:{width}}  {v.outcome}{': ' if v.message else ''}{v.message}{case}")
        return "\n".join(lines)


def equal(got: Tensor, expected: Tensor, tolerance: float, what: str, begin: int = 0) -> None:
    """Raise Breach unless the two agree to `tolerance`, relative to the largest number expected (at least 1).

    Where they are [batch, length, ...], the message names the row and token of the largest difference, the tokens
    counted from `begin`.
    """
    if got.shape != expected.shape:
        raise Breach(f"{what}: shape {list(got.shape)} where {list(expected.shape)} was expected")
    if not got.numel():
        return
    wide = torch.float64
    difference = (got.detach().to(wide) - expected.detach().to(wide)).abs()
    scale = max(1.0, float(expected.detach().to(wide).abs().max()))
    worst = float(difference.max())
    if math.isfinite(worst) and worst <= tolerance * scale:
        return
    flat = int(torch.nan_to_num(difference, nan=math.inf).argmax())
    place = torch.unravel_index(torch.tensor(flat), difference.shape)
    where = f" at row {int(place[0])}, token {begin + int(place[1])}" if got.ndim == 3 else ""
    raise Breach(f"{what}: off by {worst:.2g}{where} (largest expected {scale:.2g}, allowed {tolerance * scale:.0e})")


def smaller(case: Case, fixed: frozenset[str]) -> Iterable[Case]:
    """Cases next to `case` that are smaller in one respect, the boldest first."""
    if case.documents is not None:
        yield from _smaller_documents(case)
    else:
        for n in sorted({1, 2, case.length // 2, case.length - 1}):
            if 0 < n < case.length and "length" not in fixed:
                cuts = tuple(sorted({min(c, n - 1) for c in case.cuts} - {0})) if case.cuts else ()
                if bool(cuts) == bool(case.cuts):
                    yield replace(case, length=n, cuts=cuts)
        for rows in range(1, case.batch):
            yield replace(case, batch=rows)
    for i, cut in enumerate(case.cuts):
        if len(case.cuts) > 1:
            yield replace(case, cuts=case.cuts[:i] + case.cuts[i + 1 :])
        lower = case.cuts[i - 1] if i else 0
        if cut - 1 > lower:
            yield replace(case, cuts=(*case.cuts[:i], cut - 1, *case.cuts[i + 1 :]))


def _smaller_documents(case: Case) -> Iterable[Case]:
    rows = case.documents or ()
    changed = [rows[:r] + rows[r + 1 :] for r in range(len(rows)) if len(rows) > 1]
    for r, row in enumerate(rows):
        shorter = [row[:d] + row[d + 1 :] for d in range(len(row)) if len(row) > 1]
        for d, n in enumerate(row):
            shorter += [(*row[:d], m, *row[d + 1 :]) for m in sorted({1, n // 2, n - 1}) if 0 < m < n]
        changed += [(*rows[:r], new, *rows[r + 1 :]) for new in shorter]
    for documents in changed:
        width = max(map(sum, documents))
        cuts = tuple(c for c in case.cuts if c < width)
        if bool(cuts) == bool(case.cuts):
            yield replace(case, documents=documents, cuts=cuts)
