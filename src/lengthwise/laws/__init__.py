"""The contract as checks that anyone can run on a module of their own.

    lengthwise.laws.check(MyMixer, dim=16)      # raises LawBroken, naming the law and the smallest case found

`LAWS` has every law by its name.
"""

from lengthwise.laws.check import LAWS, check, examine
from lengthwise.laws.law import Case, Law, LawBroken, Report, Verdict
from lengthwise.laws.subject import Subject

__all__ = ["LAWS", "Case", "Law", "LawBroken", "Report", "Subject", "Verdict", "check", "examine"]
