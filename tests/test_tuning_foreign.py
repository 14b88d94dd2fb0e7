"""Text that a datastore is most likely not for."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from knnlm_store.background import background_text
from knnlm_store.tuning.foreign import foreign_text, source_of
from knnlm_store.tuning.layout import laid_out

SHIPPED = {"novel", "speeches", "jargon", "sqlite"}


def test_five_sources_in_turns() -> None:
    documents = list(foreign_text())
    counts = Counter(source_of(document.id) for document in documents)
    assert set(counts) == {*SHIPPED, "python"}
    assert min(counts.values()) >= 10
    assert {source_of(document.id) for document in documents[:5]} == set(counts)
    assert all(1500 < len(document.text) <= 2400 for document in documents)
    assert source_of("s/a/b.txt") == "s/a"


def test_a_python_without_its_reference_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert {source_of(document.id) for document in foreign_text()} == SHIPPED


@pytest.mark.parametrize(
    ("habit", "has"),
    [
        ("long lines", lambda text: max(map(len, text.split("\n"))) > 200),
        ("wrapped lines", lambda text: max(map(len, text.split("\n"))) < 90),
        ("lists", lambda text: text.count("\n* ") + text.count("\n- ") > 2),
        ("front matter", lambda text: re.match(r"\w+: \S", text) is not None),
        ("a number at its beginning", lambda text: any(map(str.isdigit, text[:12]))),
        ("an underlined heading", lambda text: any(s * 8 in text for s in "=-*")),
    ],
)
def test_no_habit_is_of_one_source_alone(habit: str, has: Callable[[str], bool]) -> None:
    """Each is judged by fits that saw none of it; they must have seen its habits elsewhere."""
    sources = {source_of(document.id) for document in foreign_text() if has(document.text)}
    assert len(sources) > 1, habit


def test_four_layouts() -> None:
    body = f"{'word ' * 30}word\n\n{'other ' * 30}other"
    texts = [laid_out(number, "Title", {"Name": "a", "Year": "1"}, body) for number in range(5)]
    assert texts[4] == texts[0]
    assert len(set(texts)) == 4
    assert texts[2] == f"Name: a\nYear: 1\n\n{body}"
    assert texts[3] == f"Title\n\n{body}"
    for number in (0, 1):
        assert max(map(len, texts[number].split("\n"))) <= 74
        assert texts[number].count("\n\n") == 2
        assert texts[number].split() == texts[3 if number == 0 else 2].split()


def test_what_key_spaces_are_fitted_on_stays_as_it_is() -> None:
    """Else datastores of another version could no longer be pooled with new ones."""
    text = "\0".join(document.text for document in background_text())
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "db99dcf5f0598e90f8bc8c95ca02c26972b52bb08745afd0e9ee9263db6d1702"
    )
