"""Every broken mixer is caught by the law that it breaks; the good ones by none."""

from __future__ import annotations

import pytest

from lengthwise import laws
from tests.laws import mixers

BROKEN = {
    "LeaksTheFuture": ("causal", "batch 1, length 2"),
    "ForgetsTheState": ("resumable", "batch 1, length 2, cut at 1"),
    "ForgetsForManyTokens": ("resumable", "batch 1, length 3, cut at 1"),
    "MixesDocuments": ("packed", "batch 1, length 2, documents of 1, 1"),
    "KeepsTheMaximum": ("packed", "batch 1, length 2, documents of 1, 1, inputs times 1000"),
    "DependsOnTheBatch": ("rows", "batch 2, length 1"),
    "WrongGradient": ("gradients", "batch 1, length 1"),
    "Grows": ("growth", "batch 1, length 1"),
    "MutatesItsState": ("value", "batch 1, length 2, cut at 1"),
    "ReadsPadding": ("padding", "batch 2, length 2, rows of 2 | 1, padded on the right"),
    "ReadsPaddingOnTheLeft": ("padding", "batch 2, length 2, rows of 2 | 1, padded on the left"),
    "OverflowsOnLargeInputs": ("finite", "batch 1, length 1, inputs times 10000"),
    "DividesByNothing": ("finite", "batch 2, length 1, documents of 1 | 0"),
    "RoundsItsState": ("bfloat16", "batch 1, length 1"),
    "LosesAParameter": ("saved", "batch 1, length 1"),
    "SeesFurtherThanDeclared": ("receptive_field", "batch 1, length 4"),
    "SeesMoreThanItsPattern": ("pattern", "batch 1, length 5"),
    "LeavesTheGraph": ("compile", "batch 1, length 1"),
}
"""Class: the law that catches it, and the smallest case (without the width)."""


@pytest.mark.parametrize("name", ["MovingAverage", "TokenAverage", "DocumentMean"])
def test_good_mixers_keep_every_law(name):
    report = laws.check(getattr(mixers, name), dim=8)
    assert {v.outcome for v in report.verdicts} <= {"holds", "does not apply"}
    assert report["packed"].outcome == report["gradients"].outcome == "holds"


@pytest.mark.parametrize("name", BROKEN)
def test_broken_mixers_are_caught_by_the_right_law(name):
    law, smallest = BROKEN[name]
    with pytest.raises(laws.LawBroken) as caught:
        laws.check(getattr(mixers, name), dim=8, laws=[law])
    assert caught.value.law == law
    assert str(caught.value.case).partition(", dim")[0] == smallest
    others = [other for other in laws.LAWS if other not in (law, "compile")]
    report = list(laws.examine(laws.Subject(getattr(mixers, name), 8), others))
    wrong = {v.law for v in report if v.outcome == "broken"}
    assert wrong == CONSEQUENCES.get(name, set())


CONSEQUENCES = {
    "LeaksTheFuture": {"resumable", "packed", "padding", "lengths"},
    "ForgetsTheState": {"lengths"},
    "ForgetsForManyTokens": {"lengths"},
    "DependsOnTheBatch": {"padding", "packed"},
    "KeepsTheMaximum": {"padding", "finite"},
    "MutatesItsState": {"gradients", "padding", "rows", "saved"},
}
"""Laws that the broken one takes with it: what leaks the future can't be resumed either."""


def test_a_module_that_fails_is_a_broken_law_with_its_error():
    with pytest.raises(laws.LawBroken, match="raises IndexError") as caught:
        laws.check(mixers.FailsOnNothing, dim=8, laws=["lengths"])
    assert str(caught.value.case).startswith("batch 1, length 0")
