"""The suite of each mutant. Not collected by itself: `test_suite_catches.py` runs it apart."""

from __future__ import annotations

from typing import ClassVar

from tests.mutants import keeping, searching
from tests.mutants.able import Able, Mutant, SuiteOfAble

__all__ = ["MUTANTS", "keeping", "searching"]

MUTANTS = Mutant.__subclasses__()

for mutant in MUTANTS:
    name = f"Test{mutant.__name__}"
    globals()[name] = type(name, (SuiteOfAble,), {"adapter": mutant})


class TestDeclaredGap(SuiteOfAble):
    adapter = searching.RootDistances
    gaps: ClassVar[dict[str, str]] = {"test_distances_are_squared": "gives the root"}


class TestClosedGap(SuiteOfAble):
    adapter = Able
    gaps: ClassVar[dict[str, str]] = {"test_distances_are_squared[int8]": "gave the root"}
