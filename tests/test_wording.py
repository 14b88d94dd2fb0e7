"""Counts as people read them."""

from __future__ import annotations

import pytest

from knnlm_store.wording import counted, listed


@pytest.mark.parametrize(
    ("number", "what", "told"),
    [
        (0, "document", "0 documents"),
        (1, "document", "1 document"),
        (1, "entry", "1 entry"),
        (2000, "entry", "2,000 entries"),
        (2, "query", "2 queries"),
        (2, "stored key", "2 stored keys"),
    ],
)
def test_one_and_many(number: int, what: str, told: str) -> None:
    assert counted(number, what) == told


def test_names_in_one_short_line() -> None:
    assert listed([]) == "none"
    assert listed({"b", "a"}) == "'a', 'b'"
    assert listed(["line\nbreak"]) == r"'line\nbreak'"
    assert listed(["x" * 99]) == f"'{'x' * 60}...'"
    assert listed(str(n) for n in range(10, 20)).endswith("'16', '17' and 2 more")
