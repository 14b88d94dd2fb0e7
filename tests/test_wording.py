"""Counts as people read them."""

from __future__ import annotations

import pytest

from knnlm_store.wording import counted


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
