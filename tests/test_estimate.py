"""The dry run: what an ingest would do, without doing it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from knnlm_store import intents, registry
from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore
from knnlm_store.estimate import estimate
from knnlm_store.ingest import ingest
from knnlm_store.models import LanguageModel
from tests.ingest_support import an_intent, corpus, dead_writer, document, new_store, prose

TEXTS = {"a": prose(1, 70), "b": prose(2, 9), "c": prose(3, 33), "empty": ""}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"faiss:{tmp_path}/x"


def test_a_datastore_that_is_not_there(
    language_model: LanguageModel, uri: str, tmp_path: Path
) -> None:
    """It stays absent; documents and tokens are those of the ingest that follows."""
    lost = Problem("x", "It cannot be read.", True)
    stream: list[Document | Problem] = [lost, *corpus(TEXTS)]
    told = estimate(stream, language_model, registry.parse(uri))
    assert list(tmp_path.iterdir()) == []
    assert (told.documents, told.unchanged, told.storage) == (3, 0, "float16")
    assert told.problems == [lost]
    assert told.bytes == told.tokens * (32 * 2 + 4 + 2)
    with Datastore.open_or_create(uri, language_model.manifest()) as store:
        report = ingest(corpus(TEXTS), language_model, store)
    assert (told.tokens, told.documents) == (report.tokens, report.added)
    assert json.loads(json.dumps(told.json()))["tokens"] == 112


def test_what_changed_since(language_model: LanguageModel, uri: str) -> None:
    with new_store(language_model, uri) as store:
        ingest(corpus(TEXTS), language_model, store)
        intents.put(store.backend, [an_intent("s/c", 5, dead_writer())])  # a run was killed
        before = dict(store.backend.scan_records(""))
        changed = TEXTS | {"b": "", "c": "changed", "new": prose(9, 40)}
        told = estimate(corpus(changed), language_model, store.location)
        assert dict(store.backend.scan_records("")) == before
        assert store.backend.count() == 112
        report = ingest(corpus(changed), language_model, store)
    assert (told.documents, told.unchanged, told.tokens) == (3, 1, 47)
    assert told.documents == report.added + report.replaced
    assert told.tokens == report.tokens
    assert told.storage == "float32"


def test_nothing_to_do(language_model: LanguageModel, uri: str) -> None:
    with new_store(language_model, uri) as store:
        ingest(corpus(TEXTS), language_model, store)
        told = estimate(corpus(TEXTS), language_model, store.location)
    assert (told.documents, told.unchanged, told.tokens) == (0, 3, 0)
    assert (told.bytes, told.seconds) == (0, 0.0)


@pytest.mark.parametrize(("storage", "key_bytes"), [("int8", 32), ("float32", 128)])
def test_bytes_follow_the_storage(
    language_model: LanguageModel, uri: str, storage: str, key_bytes: int
) -> None:
    where = registry.parse(uri)
    told = estimate(corpus(TEXTS), language_model, where, storage)
    assert told.storage == storage
    assert key_bytes * 112 <= told.bytes <= (key_bytes + 30) * 112
    with Datastore.open_or_create(where, language_model.manifest(), storage) as store:
        ingest(corpus(TEXTS), language_model, store)


def test_seconds_grow_with_the_text(language_model: LanguageModel, uri: str) -> None:
    """One forward pass is timed, however much there is to read."""
    where = registry.parse(uri)
    short = estimate([document("a", prose(1, 30))], language_model, where)
    long = estimate([document("a", prose(1, 30_000))], language_model, where)
    assert 0 < short.seconds < long.seconds
