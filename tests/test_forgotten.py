"""After `forget` and `compact` nothing of a document is left in the files of a local backend."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from knnlm_store.backend import Compactable, Indexed, VectorBackend
from knnlm_store.catalog import Catalog
from knnlm_store.documents import PREFIX, Change, DocumentRecord
from knnlm_store.testing.base import Base
from knnlm_store.testing.truth import assert_keys_equal, compare
from knnlm_store.values import Entries, Float32, Location, Spec
from knnlm_store_faiss import FaissBackend
from knnlm_store_milvus import MilvusBackend
from knnlm_store_milvus.records import _digest
from knnlm_store_qdrant import EmbeddedBackend, QdrantBackend
from knnlm_store_qdrant.records import _id
from tests.remains import quantised, remains, traces

DIMENSION = 16


class FaissIndexed(FaissBackend):
    exact_rows = 200


class EngineIndexed(EmbeddedBackend):
    indexed_kilobytes = 1


class Written:
    """Everything that was ever written of documents of a source."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.entries: list[Entries] = []
        self.traces: dict[bytes, str] = {}

    @property
    def keys(self) -> Float32:
        return np.concatenate([each.keys for each in self.entries])

    def add(self, store: VectorBackend, name: str, count: int, seed: int) -> str:
        """Write a document, or another version of it, as ingesting does; gives its id."""
        catalog, digest = Catalog(store), hashlib.sha256(bytes([seed])).hexdigest()
        document = f"{self.source}/{name}"
        version, author = catalog.new_version(document, digest, count, 99), f"author of {name}"
        change = Change(DocumentRecord(self.source, name, {"author": author}, version))
        entries = self._made(version.number, count, seed)
        catalog.begin_writing()
        assert catalog.claim([change]) == set()
        store.upsert(entries)
        store.flush()
        catalog.commit([change])
        catalog.release([change])
        catalog.end_writing()
        ids = [_id(PREFIX + document), _digest(PREFIX + document)]  # of its record, at the vendors'
        self.traces |= traces(entries, [document, author, digest, *ids], [UUID(ids[0]).bytes])
        return document

    def _made(self, number: int, count: int, seed: int) -> Entries:
        random, positions = np.random.default_rng(seed), np.arange(count, dtype=np.int64)
        tokens = random.integers(2**30, 2**32, count)
        keys = random.normal(size=(count, DIMENSION)).astype(np.float32)
        self.entries.append(Entries(keys, tokens, positions * 0 + number, positions))
        return self.entries[-1]


def place(kind: type[VectorBackend], folder: Path) -> Location:
    if issubclass(kind, MilvusBackend):
        return Location("milvus", str(folder / "file.db"), "law")
    return Location("faiss" if issubclass(kind, FaissBackend) else "qdrant", str(folder), "law")


CASES: list[tuple[type[VectorBackend], str, set[str]]] = [
    (FaissBackend, "float16", {"key, float16", "tokens, uint32", "id, big endian"}),
    (FaissBackend, "int8", {"key, int8"}),
    (FaissIndexed, "float32", {"key, float32"}),
    (QdrantBackend, "float16", {"key, float16", "key, CBOR", "token, JSON", "id, as text"}),
    (EngineIndexed, "int8", {"key, 7 bits", "key, float32", "key, CBOR", "id, little endian"}),
    (MilvusBackend, "float32", {"key, float32", "tokens, int64", "id, little endian"}),
]


@pytest.mark.parametrize(("kind", "storage", "forms"), CASES)
def test_nothing_is_left_of_a_forgotten_document(
    tmp_path: Path, kind: type[VectorBackend], storage: str, forms: set[str]
) -> None:
    """Of neither of its versions; and the others are whole."""
    kept, gone, location = Written("library"), Written("the attic"), place(kind, tmp_path)
    with closing(kind.connect(location)) as store:
        store.create(Spec(DIMENSION, storage), {"manifest": b"m"})
        kept.add(store, "first.txt", 300, 1)
        secret = gone.add(store, "a secret chapter.txt", 60, 2)
        kept.add(store, "second.txt", 200, 3)
        gone.add(store, "a secret chapter.txt", 70, 4)
        assert isinstance(store, Indexed)
        store.build_index()
        before = found(tmp_path, gone, kept)
        assert {line.partition(": ")[2].partition(", in ")[0] for line in before} >= forms | {
            secret
        }
        assert Catalog(store).forget([secret]) == set()
        assert isinstance(store, Compactable)
        store.compact()
        index = store.describe_index()
    assert found(tmp_path, gone, kept) == []
    with closing(kind.connect(location)) as store:
        assert_whole(store, Entries.concatenate(kept.entries))
        assert isinstance(store, Indexed)
        assert store.describe_index() == index


def found(folder: Path, gone: Written, kept: Written) -> list[str]:
    rounded = quantised(folder, gone.keys)
    return remains(folder, gone.traces | rounded, kept.traces | quantised(folder, kept.keys))


def assert_whole(store: VectorBackend, entries: Entries) -> None:
    tolerance = Base.tolerance[store.spec().storage]
    there = Entries.concatenate(list(store.scan(with_keys=True)))
    there, entries = (each[np.argsort(each.ids)] for each in (there, entries))
    for name in ("ids", "documents", "tokens"):
        np.testing.assert_array_equal(getattr(there, name), getattr(entries, name))
    assert_keys_equal(there.keys, entries.keys, tolerance)
    queries = np.random.default_rng(7).normal(size=(10, DIMENSION)).astype(np.float32)
    recall = 0.9 if isinstance(store, FaissIndexed) else 1.0
    compare(store.search(queries, 20), entries, queries, 20, tolerance, recall)
    assert [document.source for document in Catalog(store)] == ["library"] * 2
