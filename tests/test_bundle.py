"""From a datastore into a bundle and back: equal, in bounded pieces, and never half there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from knnlm_store import history
from knnlm_store.bundle import (
    export_bundle,
    import_bundle,
    open_bundle,
    tables,
)
from knnlm_store.calibrated import Calibration
from knnlm_store.calibration import keep_temperature, settle, stored_temperature
from knnlm_store.datastore import Datastore
from knnlm_store.errors import (
    MissingDependency,
    UsageError,
)
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.values import Entries
from knnlm_store.verifying import ROUNDING
from tests.bundle_support import LENGTHS, NUMBERS, assert_equal, held, said, small, store_at
from tests.doctor_support import APART, entries, manifest, put, record
from tests.ingest_support import assert_whole


@pytest.fixture
def store() -> Iterator[Datastore]:
    with store_at("memory:") as made:
        yield made


@pytest.fixture
def bundle(store: Datastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with several files of several row groups, and a document that came in pieces."""
    small(monkeypatch)
    export_bundle(store, tmp_path / "bundle")
    return tmp_path / "bundle"


# -- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    """What comes back is what was there; a second import adds nothing."""
    small(monkeypatch)
    uri = f"faiss:{tmp_path}/new/law"
    with store_at(f"faiss:{tmp_path}/old/law", storage) as old:
        report = export_bundle(old, tmp_path / "bundle")
        assert (report.documents, report.entries, report.changed) == (6, sum(LENGTHS), [])
        import_bundle(tmp_path / "bundle", uri)
        with Datastore.open(uri) as new:
            assert new.backend.spec() == old.backend.spec()
            largest = float(np.abs(held(old.backend).keys).max())
            assert_equal(new, old, ROUNDING["int8"] * largest if storage == "int8" else 0.0)
            assert_whole(new)
            assert new.manifest == old.manifest
            np.testing.assert_array_equal(new.manifest.probe, old.manifest.probe)
            (run,) = history.runs(new.backend)
            assert run.what == "import"
    again = import_bundle(tmp_path / "bundle", uri)
    assert (again.copied, again.skipped, again.entries) == (0, 6, 0)
    assert again.verified["entries"] == sum(LENGTHS)


def test_to_another_storage(bundle: Path, store: Datastore, tmp_path: Path) -> None:
    uri = f"faiss:{tmp_path}/new/law"
    import_bundle(bundle, uri, storage="float16")
    with Datastore.open(uri) as new:
        assert new.backend.spec().storage == "float16"
        assert_equal(
            new, store, ROUNDING["float16"] * float(np.abs(held(store.backend).keys).max())
        )


def test_calibration_and_temperature_come_along(store: Datastore, tmp_path: Path) -> None:
    mixture = Mixture(7, 3.5, Fixed(0.4))
    Calibration.of(store, {"fixed": mixture}, "fixed", "today", {}).write(store)
    keep_temperature(store)
    export_bundle(store, tmp_path / "bundle")
    import_bundle(tmp_path / "bundle", f"faiss:{tmp_path}/law")
    with Datastore.open(f"faiss:{tmp_path}/law") as new:
        settled = settle(new)
        assert (settled.calibrated, settled.mixture) == (True, mixture)
        assert stored_temperature(new) == stored_temperature(store)


def test_an_empty_datastore(tmp_path: Path) -> None:
    with Datastore.open_or_create("memory:", manifest()) as store:
        export_bundle(store, tmp_path / "bundle")
    assert import_bundle(tmp_path / "bundle", f"faiss:{tmp_path}/law").copied == 0
    with Datastore.open(f"faiss:{tmp_path}/law") as new:
        assert new.backend.count() == 0


def test_a_target_that_holds_more_keeps_it(bundle: Path, tmp_path: Path) -> None:
    uri = f"faiss:{tmp_path}/new/law"
    other = 77 * APART
    with Datastore.open_or_create(uri, manifest()) as target:
        target.backend.upsert(entries(np.ones((3, 16), np.float32), other))
        put(target, record(other, 3))
    assert import_bundle(bundle, uri).skipped == 0
    with Datastore.open(uri) as target:
        assert {d.version.number for d in target.documents()} == {other, *NUMBERS}
        assert_whole(target)


# -- what stands in the folder ---------------------------------------------------------------------


def test_files_and_order(bundle: Path) -> None:
    """Anybody's Parquet reader finds entries in order of document and position."""
    names = [file["name"] for file in said(bundle)["files"]]
    assert sorted([*names, "bundle.json"]) == sorted(os.listdir(bundle))
    shards = [name for name in names if name.startswith("entries-")]
    assert len(shards) > 3
    rows = [row for name in shards for row in pq.read_table(bundle / name).to_pylist()]
    documents = pq.read_table(bundle / "documents.parquet").to_pylist()
    assert [d["id"] for d in documents] == sorted(d["id"] for d in documents)
    expected = [(d["number"], p) for d in documents for p in range(d["tokens"])]
    assert [(row["document"], row["position"]) for row in rows] == expected
    assert [row["id"] for row in rows] == [number + position for number, position in expected]
    file = pq.ParquetFile(bundle / shards[1])
    assert str(file.schema_arrow.field("key").type).startswith("fixed_size_list<element: float not")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups[:-1] == [16] * (len(groups) - 1)


def test_keys_of_float16_take_two_bytes(tmp_path: Path) -> None:
    sizes = []
    for storage in ("float16", "float32"):
        with store_at("memory:" if storage == "float32" else f"faiss:{tmp_path}/s", storage) as s:
            sizes.append(export_bundle(s, tmp_path / storage).bytes)
    assert sizes[1] - sizes[0] > 1.5 * 16 * sum(LENGTHS)
    table = pq.read_table(tmp_path / "float16" / "entries-00000.parquet")
    assert "halffloat" in str(table.schema.field("key").type)


def test_a_scan_reads_only_what_holds_the_documents(
    bundle: Path, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_bundle(bundle) as opened:
        read: list[int] = []
        batches = tables.batches

        def noting(table: Any, size: int, **options: Any) -> Any:
            read.extend(options["groups"])
            return batches(table, size, **options)

        monkeypatch.setattr(tables, "batches", noting)
        for wanted in ([], [3], [NUMBERS[2]]):
            assert list(opened.backend.scan(documents=wanted)) == []
        assert read == []
        for wanted, groups in ((NUMBERS[:1], 1), (NUMBERS[5:], 1), (NUMBERS[4:5], 3)):
            read.clear()
            batches_read = list(opened.backend.scan(with_keys=True, documents=[*wanted, 5]))
            found = Entries.concatenate(batches_read)
            (expected,) = store.backend.scan(with_keys=True, documents=wanted)
            np.testing.assert_array_equal(found.keys, expected.keys)
            np.testing.assert_array_equal(found.ids, expected.ids)
            assert len(read) <= groups
        assert opened.backend.count(NUMBERS) == opened.backend.count() == sum(LENGTHS)
        sizes = [len(batch) for batch in opened.backend.scan(batch_size=7)]
        assert max(sizes) == 7


def test_a_bundle_is_only_read(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        hint = f"Import it first: knnlm-store import {bundle} --store faiss:stores/memory"
        with pytest.raises(UsageError, match="which cannot be searched") as caught:
            opened.search(np.zeros((1, 16), np.float32), 3)
        assert caught.value.hint == hint
        (some,) = opened.backend.scan(with_keys=True, documents=NUMBERS[:1])
        backend = opened.backend
        changes: list[Callable[[], None]] = [
            lambda: backend.upsert(some),
            lambda: backend.delete([1]),
            lambda: backend.put_records({"a": b""}),
            lambda: backend.delete_records(["a"]),
            backend.drop,
            lambda: backend.create(backend.spec(), {}),
        ]
        for change in changes:
            with pytest.raises(UsageError, match="is a bundle, which can only be"):
                change()
        assert opened.info()["entries"] == sum(LENGTHS)


# -- without pyarrow -------------------------------------------------------------------------------


def test_pyarrow_is_asked_for_first(
    store: Datastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for call in (
        lambda: export_bundle(store, tmp_path / "b"),
        lambda: open_bundle(tmp_path / "none"),
        lambda: import_bundle(tmp_path / "none", "nonsense:no/where"),
    ):
        with pytest.raises(MissingDependency, match="pyarrow is not installed") as caught:
            call()
        assert caught.value.hint == "Run: pip install 'knnlm-store[data]'"
    assert os.listdir(tmp_path) == []
