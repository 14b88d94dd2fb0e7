"""Text that a datastore is most likely not for."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from knnlm_store.tuning.foreign import foreign_text, source_of


def test_three_sources_in_turns() -> None:
    documents = list(foreign_text())
    counts = Counter(source_of(document.id) for document in documents)
    assert set(counts) == {"novel", "speeches", "python"}
    assert min(counts.values()) >= 10
    assert {source_of(document.id) for document in documents[:3]} == set(counts)
    assert source_of("s/a/b.txt") == "s/a"


def test_a_python_without_its_reference_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert {source_of(document.id) for document in foreign_text()} == {"novel", "speeches"}
