"""A suite that cannot fail proves nothing: each planted bug must fail the test made for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.mutants.able import Mutant
from tests.mutants.suites import MUTANTS

HERE = Path(__file__).parent
GAP = "test_distances_are_squared"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """`Class::test` to how its parametrisations ended, from one run of the tests in question."""
    report = tmp_path_factory.mktemp("mutants") / "report.xml"
    tests = [f"Test{mutant.__name__}::{mutant.caught_by}" for mutant in MUTANTS]
    tests += [f"TestDeclaredGap::{GAP}", f"TestClosedGap::{GAP}"]
    options = ["-q", "--tb=no", "-p", "no:cacheprovider", f"--junitxml={report}"]
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *options,
            *(f"{HERE}/mutants/suites.py::{t}" for t in tests),
        ],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    ended: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test = case.attrib["classname"].rpartition(".")[2] + "::" + case.attrib["name"]
        how = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        ended.setdefault(test.partition("[")[0], []).append(how[0] if how else "passed")
    return ended


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_planted_bug_is_caught(outcomes: dict[str, list[str]], mutant: type[Mutant]) -> None:
    assert "failure" in outcomes[f"Test{mutant.__name__}::{mutant.caught_by}"]


def test_declared_gap_is_an_expected_failure(outcomes: dict[str, list[str]]) -> None:
    assert outcomes[f"TestDeclaredGap::{GAP}"] == ["skipped"]  # so JUnit calls an xfail


def test_gap_that_closed_fails(outcomes: dict[str, list[str]]) -> None:
    assert sorted(outcomes[f"TestClosedGap::{GAP}"]) == ["failure", "passed", "passed"]
