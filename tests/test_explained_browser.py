"""The page of an explanation in a real browser: by mouse, by keyboard, and against its will."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from knnlm_store.explained import page_of
from tests.browser import DOWN, TAB, Browser, browser
from tests.explained_support import example

SHOWN = """return [...document.querySelectorAll('.d')]
  .filter(d => getComputedStyle(d).display !== 'none').map(d => d.getAttribute('aria-label'))"""


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture
def page(window: Browser, tmp_path: Path) -> Browser:
    """The window, with an explanation of text and documents that mean harm."""
    file = tmp_path / "why.html"
    file.write_text(page_of([("The creditor", example(without=True))]), encoding="utf-8")
    window.open(file)
    return window


def test_hostile_text_runs_nothing_and_asks_for_nothing(page: Browser, tmp_path: Path) -> None:
    assert page.run("return [window.hurt === undefined, document.title]") == [
        True,
        "Explanation of The creditor",
    ]
    assert page.log("browser") == []  # nor was anything refused by the policy
    (only,) = page.requests(tmp_path / "why.html")
    assert only.endswith("/why.html")


def test_pointing_at_a_token_shows_where_it_came_from(page: Browser) -> None:
    assert page.run(SHOWN) == []
    page.point_at("label[for=t0-4]")
    assert page.run(SHOWN) == ["Token 5 of 151"]
    page.point_at("h1")
    assert page.run(SHOWN) == []


def test_the_keyboard_reaches_every_token(page: Browser) -> None:
    """One stop of Tab for all tokens; the arrows go from one to the next."""
    for _ in range(60):
        page.press(TAB)
        if page.run("return document.activeElement.name") == "t0":
            break
    else:
        raise AssertionError("Tab never came to the tokens.")
    for number in (1, 2, 3):
        page.press(DOWN)
        assert page.run(SHOWN) == [f"Token {number} of 151"]
        box = page.run("return getComputedStyle(document.activeElement.nextElementSibling).outline")
        assert "none" not in box
    page.press(TAB)  # into the detail, which can be scrolled, or past all tokens
    assert page.run("return document.activeElement.name") != "t0"


def test_documents_can_be_highlighted(page: Browser) -> None:
    count = "return document.querySelectorAll('.documents input').length"
    assert page.run(count) == 5
    outlined = """return [...document.querySelectorAll('.text > label.w')]
      .filter(w => getComputedStyle(w).outlineStyle !== 'none').length"""
    assert page.run(outlined) == 0
    page.run("document.querySelectorAll('.documents input')[1].click()")
    assert page.run(outlined) == example(without=True).documents[0].tokens


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_runs_over_the_edge(page: Browser, width: int) -> None:
    page.call("POST", f"{page._session}/window/rect", width=max(width, 500), height=900)
    page.run("document.documentElement.style.width = arguments[0] + 'px'", width)
    page.point_at("label[for=t0-4]")
    over = page.run("return document.body.scrollWidth - document.documentElement.clientWidth")
    assert over <= 0
