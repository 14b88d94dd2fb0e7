"""The report of `tune`: one harmless file that says what was found."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from knnlm_store.errors import UsageError
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.policies import Bucketed, Ratio
from knnlm_store.tuning.pictures import Pictures, pictures
from knnlm_store.tuning.report import check_place, render, write

pytest.importorskip("torch")  # the families are fitted with it

from knnlm_store.tuning.choice import Choice
from knnlm_store.tuning.tune import Tuned
from tests.report_support import HOSTILE, START, Case, K, marks, the_text


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def test_tables_hold_every_policy_and_mark_the_chosen(case: Case) -> None:
    root = ElementTree.fromstring(render(case.tuned, case.pictures))
    policies = next(e for e in root.iter("div") if e.get("aria-label") == "Policies")
    rows = {the_text(row[0]): row for row in policies.iter("tr")}
    for name, values in case.tuned.rows.items():
        assert f"{values['valid']['perplexity']:,.3f}" in the_text(rows[name])
        assert f"{values['test']['perplexity']:,.3f}" in the_text(rows[name])
        assert (rows[name].get("class") == "marked") == (name == "learned")


def test_every_figure_says_in_words_and_numbers_what_it_shows(case: Case) -> None:
    root = ElementTree.fromstring(render(case.tuned, case.pictures))
    figures = list(root.iter("svg"))
    assert len(figures) == 4
    assert all(each.get("role") == "img" and each.get("aria-label") for each in figures)
    beside = [each.find(".//table") for each in root.iter("details")]
    assert len(beside) == len(figures)
    assert all(each is not None for each in beside)


class Strict(HTMLParser):
    """Reads a page as a browser would, and notes what is opened, closed and referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes += attrs

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def hostile(case: Case) -> tuple[Tuned, Pictures]:
    """Every name that comes from outside is a bad one."""
    tuned = replace(case.tuned, warnings=[f"1 document ({HOSTILE}) is in the datastore"])
    tuned.groups = {HOSTILE: {HOSTILE: {"tokens": 3, "gain": 0.5}}}
    assert case.tuned.calibration is not None
    tuned.calibration = replace(
        case.tuned.calibration, model={"model": HOSTILE}, index=HOSTILE, created=HOSTILE
    )
    plain, chosen = case.pictures.reliability
    return tuned, replace(case.pictures, reliability=(plain, replace(chosen, name=HOSTILE)))


def test_no_name_becomes_markup(case: Case) -> None:
    page = render(*hostile(case), store=HOSTILE)
    parser = Strict()
    parser.feed(page)
    assert not parser.open
    assert "script" not in parser.tags
    assert "<script" not in page
    assert not re.search("[\x00\udcff\u202e]", page)
    page.encode()
    title = ElementTree.fromstring(page).find("head/title")
    assert title is not None
    assert "<script src=http://evil.example/x.js>" in the_text(title)  # as text, it is there


def test_page_refers_to_nothing_outside(case: Case) -> None:
    page = render(case.tuned, case.pictures, "qdrant://host:6333/law")
    parser = Strict()
    parser.feed(page)
    assert not re.search(r"https?:|@import|url\(|javascript:", page)
    assert not parser.tags & {"script", "link", "img", "iframe", "object", "image", "use", "base"}
    names = {name for name, _ in parser.attributes}
    assert not names & {"src", "href", "srcset", "style", "action"}
    assert not any(name.startswith("on") for name in names)


def test_page_is_for_light_and_dark(case: Case) -> None:
    page = render(case.tuned, case.pictures)
    assert "color-scheme: light dark" in page
    assert "@media (prefers-color-scheme: dark)" in page
    style = page.partition("<style>")[2].partition("</style>")[0]
    defined = set(re.findall(r"(--[a-z]+):", style.partition("@media")[0]))
    dark = style.partition("prefers-color-scheme: dark")[2].partition("} }")[0]
    assert set(re.findall(r"(--[a-z]+):", dark)) == defined
    assert set(re.findall(r"var\((--[a-z]+)\)", style)) <= defined


def test_nothing_chosen_is_said(case: Case) -> None:
    """What is kept is the plain model, which is marked."""
    kept = case.tuned.calibration
    assert kept is not None
    plain = {"plain": Mixture(K, START, Fixed(0.0))}
    tuned = replace(
        case.tuned, calibration=replace(kept, mixtures=plain, chosen="plain"), groups={}
    )
    shown = pictures(case.home, case.choices, None, START)
    page = render(tuned, shown)
    assert "No policy pays" in page
    assert "Chosen: " not in page
    root = ElementTree.fromstring(page)
    marked = [row for row in root.iter("tr") if row.get("class") == "marked"]
    assert [the_text(row[0]) for row in marked] == ["plain", str(K)]
    assert {m["name"] for m in marks(page, "dot") if "name" in m} == {"plain"}


def test_only_empty_groups_and_none(case: Case) -> None:
    empty = {"never": {"tokens": 0, "gain": 0.0}}
    page = render(replace(case.tuned, groups={"frequency": empty, "overlap": {}}), case.pictures)
    assert "no such token" in page
    assert "By overlap" not in page
    assert not [m for m in marks(page, "bar") if "group" in m]


def test_without_neighbours_of_any_token(case: Case) -> None:
    """One bucket that nobody is in, and a map on which nothing changes."""
    n = len(case.home)
    nothing = replace(
        case.home.evidence,
        distances=np.full((n, K), np.inf, np.float32),
        tokens=np.full((n, K), -1),
        log_lm=np.full((n, K), -np.inf),
    )
    sample = replace(case.home, evidence=nothing)
    policies = Fixed(0.0), Bucketed(np.empty(0), np.zeros(1)), Ratio()
    choices = [Choice(p.name, Mixture(K, START, p), 3.0, 0.0) for p in policies]
    shown = pictures(sample, choices, None, START)
    assert shown.buckets is not None
    assert shown.buckets.counts.tolist() == [0]
    assert np.isnan(shown.buckets.means["ratio"]).all()
    page = render(replace(case.tuned, calibration=None, groups={}), shown)
    drawn = [float(m["perplexity"]) for m in marks(page, "cell")]
    assert drawn == pytest.approx([shown.landscape.plain] * len(drawn))
    assert "no token" in page
    assert not re.search(r'"nan|nan"|[ML ]nan', page)


def test_without_a_bucketed_policy_there_is_no_such_figure(case: Case) -> None:
    shown = pictures(case.home, case.choices[:1], None, START)
    assert shown.buckets is None
    assert "nearest distance" not in render(case.tuned, shown)


def test_place_is_checked_before_the_work(tmp_path: Path) -> None:
    check_place(tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()
    with pytest.raises(UsageError, match="is a folder"):
        check_place(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        check_place(tmp_path / "no" / "out.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="no folder"):
        check_place(tmp_path / "file" / "out.html")


def test_place_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UsageError, match="cannot be written"):
        check_place(tmp_path / "out.html")


def test_what_is_written_is_read_back(case: Case, tmp_path: Path) -> None:
    page = render(*hostile(case))
    write(tmp_path / "out.html", page)
    assert (tmp_path / "out.html").read_bytes().decode() == page
    with pytest.raises(UsageError, match="could not be written"):
        write(tmp_path, page)
