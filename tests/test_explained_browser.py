"""The page of an explanation in a real browser: by mouse, by keyboard, and against its will."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knnlm_store.explained import page_of
from tests.browser import DOWN, ENTER, TAB, Browser, browser
from tests.explained_support import LAW, PROMPT, example

SHOWN = """return [...document.querySelectorAll('.d')]
  .filter(d => getComputedStyle(d).display !== 'none').map(d => d.getAttribute('aria-label'))"""
ON_TOP = """const box = arguments[0].getBoundingClientRect();
  const found = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return arguments[0].contains(found)"""
EXPLANATION = example(without=True)
"""Of text and documents that mean harm, among others."""


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "why.html"
    file.write_text(page_of([("The creditor", EXPLANATION)]), encoding="utf-8")
    return file


@pytest.fixture
def page(window: Browser, file: Path) -> Browser:
    window.resize(1280, 800)
    window.open(file)
    return window


def to_tokens(page: Browser) -> None:
    for _ in range(60):
        page.press(TAB)
        if page.run("return document.activeElement.name") == "t0":
            return
    raise AssertionError("Tab never came to the tokens.")


def is_on_top(page: Browser, selector: str) -> Any:
    return page.run(ON_TOP.replace("arguments[0]", f"document.querySelector('{selector}')"))


def test_hostile_text_runs_nothing_and_asks_for_nothing(page: Browser, file: Path) -> None:
    title = "Explanation of \u201cThe creditor\u201d"
    assert page.run("return [window.hurt === undefined, document.title]") == [True, title]
    assert page.log("browser") == []  # nor was anything refused by the policy
    assert page.requests(file) == {file.as_uri()}


def test_pointing_at_a_token_shows_where_it_came_from(page: Browser) -> None:
    assert page.run(SHOWN) == []
    page.point_at("label[for=t0-4]")
    assert page.run(SHOWN) == ["Token 5 of 151"]
    page.point_at("h1")
    assert page.run(SHOWN) == []


def test_what_is_pointed_at_covers_what_was_chosen(page: Browser) -> None:
    page.run("document.querySelector('label[for=t0-9]').click()")
    page.point_at("label[for=t0-4]")
    assert page.run(SHOWN) == ["Token 5 of 151", "Token 10 of 151"]
    assert is_on_top(page, "#t0-4 + label + .d")
    page.point_at("h1")
    assert is_on_top(page, "#t0-9 + label + .d")
    page.run("document.querySelector('.close').click()")
    assert page.run(SHOWN) == []


def test_the_keyboard_reaches_every_token(page: Browser) -> None:
    """One stop of Tab for all tokens; the arrows go from one to the next."""
    to_tokens(page)
    for number in (1, 2, 3):
        page.press(DOWN)
        assert page.run(SHOWN) == [f"Token {number} of 151"]
        box = page.run("return getComputedStyle(document.activeElement.nextElementSibling).outline")
        assert "solid" in box
    page.press(TAB)  # into the detail, which can be scrolled
    assert page.run("return document.activeElement.getAttribute('aria-label')") == "Token 3 of 151"
    assert page.run(SHOWN) == ["Token 3 of 151"]


def test_a_link_of_a_document_leads_to_a_token(page: Browser) -> None:
    page.run("document.querySelector('#d0-1 a').focus()")
    target = page.run("return document.activeElement.hash.slice(1)")
    page.press(ENTER)
    assert page.run("return document.activeElement.id") == target
    assert page.run(SHOWN) == [f"Token {int(target.removeprefix('t0-')) + 1} of 151"]
    assert page.run("const y = document.activeElement.getBoundingClientRect().y; return y") > 0


def test_a_document_can_be_highlighted(page: Browser) -> None:
    outlined = """return [...document.querySelectorAll('.text label.w')]
      .filter(w => getComputedStyle(w).outlineStyle !== 'none').length"""
    assert page.run("return document.querySelectorAll('.documents input').length") == 5
    assert page.run(outlined) == 0
    page.run("document.querySelector('.documents input').focus()")
    page.press(DOWN)
    first = EXPLANATION.documents[0].document
    parts = [
        t.lmbda * s.share / t.p
        for t in EXPLANATION.tokens
        for s in t.sources
        if s.document == first
    ]
    assert page.run(outlined) == sum(part >= 0.01 for part in parts)


def test_the_text_is_copied_as_it_is(page: Browser) -> None:
    """Without signs of line breaks, without what is only listened to."""
    page.run("getSelection().selectAllChildren(document.querySelector('.text'))")
    assert page.run("return getSelection().toString()").endswith(PROMPT + LAW)


@pytest.mark.parametrize("width", [360, 640, 1280])
def test_nothing_runs_over_the_edge(page: Browser, width: int) -> None:
    """640 is half of 1280, as with 200 % zoom."""
    page.resize(width, 740)
    page.point_at("label[for=t0-4]")
    over = page.run(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert over <= 0


@pytest.mark.parametrize("height", [740, 360])
def test_a_narrow_window_shows_token_and_detail(page: Browser, file: Path, height: int) -> None:
    page.resize(360, height)
    to_tokens(page)
    page.press(*[DOWN] * 80)
    for part in ("label", "label + .d > .k"):
        assert is_on_top(page, f"#t0-79 + {part}"), part
