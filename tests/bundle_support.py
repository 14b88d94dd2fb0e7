"""Bundles for tests, and bundles that somebody tampered with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from knnlm_store import copying
from knnlm_store.backend import VectorBackend
from knnlm_store.bundle import export_bundle, import_bundle, listing, shards, writing
from knnlm_store.datastore import Datastore
from knnlm_store.errors import StoreError
from knnlm_store.values import Entries
from tests.cli_support import files
from tests.doctor_support import APART, fill, manifest

LENGTHS = (5, 1, 0, 260, 30, 7)
NUMBERS = [(i + 1) * APART for i in range(len(LENGTHS))]


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 16 rows, files of a few of them; documents above 100 tokens in pieces."""
    monkeypatch.setattr(shards, "_ROWS", 16)
    monkeypatch.setattr(shards, "_SHARD", 4000)
    monkeypatch.setattr(copying, "_GROUP", 50 * 16 * 4)
    monkeypatch.setattr(writing, "_PIECE", 100 * 16 * 4)


def store_at(uri: str, storage: str = "float32", *lengths: int, **changes: Any) -> Datastore:
    """A datastore of random entries, with documents of so many tokens."""
    store = Datastore.open_or_create(uri, manifest(**changes), storage)
    fill(store, *(lengths or LENGTHS))
    return store


def held(backend: VectorBackend) -> Entries:
    """All entries, by id."""
    entries = Entries.concatenate(list(backend.scan(with_keys=True)))
    return entries[np.argsort(entries.ids)]


def exported(folder: Path) -> Path:
    """A bundle of several files, each of several row groups."""
    with pytest.MonkeyPatch.context() as patch, store_at("memory:") as store:
        small(patch)
        export_bundle(store, folder)
    return folder


def assert_equal(found: Datastore, expected: Datastore, tolerance: float = 0.0) -> None:
    """The same entries and documents; keys to the bit unless there is a tolerance."""
    mine, theirs = held(found.backend), held(expected.backend)
    for name in ("ids", "tokens", "documents", "positions"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), name)
    np.testing.assert_allclose(mine.keys, theirs.keys, rtol=0, atol=tolerance)
    each = [
        {
            d.id: (d.metadata, d.version.number, d.version.tokens, d.version.digest)
            for d in documents
        }
        for documents in (found.documents(), expected.documents())
    ]
    assert each[0] == each[1]


def said(folder: Path) -> dict[str, Any]:
    """What bundle.json says."""
    value: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
    return value


def say(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what bundle.json says, with a checksum that is right."""
    body = said(folder)
    change(body)
    del body["digest"]
    text = json.dumps(body | {"digest": listing._digest(body)})
    (folder / "bundle.json").write_text(text)


def forge(folder: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a file's rows, with sizes and checksums that are right."""
    path = folder / name
    table = change(pq.read_table(path))
    pq.write_table(table, path)
    content = path.read_bytes()
    new = {"bytes": len(content), "rows": len(table), "sha256": hashlib.sha256(content).hexdigest()}

    def entry(body: dict[str, Any]) -> None:
        (file,) = (each for each in body["files"] if each["name"] == name)
        file |= new
        for holds in ("documents", "entries"):
            body[holds] = sum(f["rows"] for f in body["files"] if f["holds"] == holds)

    say(folder, entry)


def column(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    """A change of one column of a table."""

    def change(table: pa.Table) -> pa.Table:
        place, field = table.schema.get_field_index(name), table.schema.field(name)
        new = pa.array(values(table.column(name).to_pylist()), type=field.type)
        return table.set_column(place, field, new)

    return change


def refused(folder: Path, target: Path) -> StoreError:
    """The error of an import, which must have written nothing, at a new place or an old one."""
    there = files(target)
    with pytest.raises(StoreError) as caught:
        import_bundle(folder, f"faiss:{target}/law")
    assert files(target) == there
    assert target.exists() == bool(there)
    assert str(caught.value).endswith(".")
    assert caught.value.hint
    return caught.value
