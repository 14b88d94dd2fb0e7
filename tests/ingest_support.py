"""Documents, datastores and what they hold, for the tests of the ingest path."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from knnlm_store import intents, writers
from knnlm_store.backend import VectorBackend
from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.documents import DocumentRecord, Version
from knnlm_store.intents import Intent
from knnlm_store.memory import MemoryBackend
from knnlm_store.models import LanguageModel
from knnlm_store.values import Entries, Int64, Location, Spec

WORDS = ["the", "creditor", "shall", "disclose", "a", "rate", "and", "every", "fee", "of", "charge"]


def document(name: str, text: str, **metadata: Any) -> Document:
    return Document("s", name, text, metadata, len(text))


def corpus(texts: Mapping[str, str]) -> list[Document]:
    return [document(name, text) for name, text in texts.items()]


def prose(seed: int, tokens: int) -> str:
    """Text of so many tokens, which are bytes here."""
    chosen = np.random.default_rng(seed).choice(WORDS, tokens)
    return " ".join(chosen.tolist())[:tokens]


def new_store(lm: LanguageModel, uri: str = "memory:", storage: str = "float32") -> Datastore:
    return Datastore.open_or_create(uri, lm.manifest(), storage)


def store_of(backend: MemoryBackend, lm: LanguageModel) -> Datastore:
    """A datastore in a backend of a test's own kind."""
    manifest = lm.manifest()
    backend.create(Spec(manifest.dimension), manifest.records())
    return Datastore(Location("memory", "", "memory"), backend, manifest)


def held(store: Datastore) -> Entries:
    """Everything in the datastore, by id."""
    entries = Entries.concatenate(list(store.backend.scan(with_keys=True)))
    return entries[np.argsort(entries.ids)]


def assert_same(found: Datastore, expected: Datastore) -> None:
    """The same ids and tokens, keys within rounding, and the same versions of documents."""
    mine, theirs = held(found), held(expected)
    for name in ("ids", "tokens", "documents", "positions"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), name)
    np.testing.assert_allclose(mine.keys, theirs.keys, atol=1e-5)
    documents, wanted = (sorted(map(_timeless, s.documents())) for s in (found, expected))
    assert documents == wanted
    assert found.backend.get_records(["temperature"]) == {}


def _timeless(record: DocumentRecord) -> tuple[Any, ...]:
    version = record.version
    what = (version.number, version.tokens, version.digest, version.salt, version.size)
    return record.id, dict(record.metadata), what


def assert_whole(store: Datastore) -> None:
    """Every committed token is there once, nothing else is, and nothing waits to be mended."""
    expected = []
    assert list(intents.scan(store.backend)) == []
    for record in store.documents():
        assert record.stale == ()
        expected += [(record.version.number, p) for p in range(record.version.tokens)]
    entries = held(store)
    assert list(zip(entries.documents.tolist(), entries.positions.tolist(), strict=True)) == sorted(
        expected
    )
    assert store.backend.count() == store.info()["entries"] == len(expected)


def counted(lm: LanguageModel) -> Callable[[], int]:
    """Count the forward passes for keys from now on."""
    calls, original = [0], lm.keys

    def keys(batch: Any) -> Any:
        calls[0] += 1
        return original(batch)

    lm.keys = keys  # type: ignore[method-assign]
    return lambda: calls[0]


def tokens_of(lm: LanguageModel, texts: Iterable[str]) -> list[list[int]]:
    return [lm.tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def a_version(number: int, tokens: int = 5) -> Version:
    return Version(number, tokens, f"digest{number}", 0, 9, time.time())


def record(name: str, number: int, tokens: int = 5, **fields: Any) -> DocumentRecord:
    """A document in force, its metadata empty unless given."""
    made = DocumentRecord("s", name, {}, a_version(number, tokens))
    return replace(made, **fields)


def put_documents(backend: VectorBackend, records: Iterable[DocumentRecord]) -> None:
    """Write records past the catalog and its claims."""
    backend.put_records({f"document/{r.id}": r.encode() for r in records})


def bare(records: Iterable[DocumentRecord] = (), dimension: int = 4) -> MemoryBackend:
    """A datastore without a model, with these records of documents."""
    backend = MemoryBackend.connect(Location("memory", "", "memory"))
    backend.create(Spec(dimension), {})
    put_documents(backend, records)
    return backend


def some_entries(number: int, count: int, dimension: int = 4) -> Entries:
    keys = np.random.default_rng(number % 1000).normal(size=(count, dimension))
    positions: Int64 = np.arange(count, dtype=np.int64)
    return Entries(keys.astype(np.float32), positions + 7, positions * 0 + number, positions)


def an_intent(document: str, number: int, writer: str, *, at: float | None = None) -> Intent:
    return Intent(document, number, True, writer, time.time() if at is None else at)


def dead_writer() -> str:
    """Name of a writer whose process has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return f"{writers._place()}:{process.pid}:1:0"
