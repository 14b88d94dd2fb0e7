"""What Milvus Lite can show of the adapter."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from knnlm_store.corpus import Corpus, Document, Problem
from knnlm_store.errors import StoreCorrupt, StoreError, StoreExists, StoreNotFound, UsageError
from knnlm_store.values import DocumentFilter, Location, Spec
from knnlm_store_milvus import MilvusBackend, connection, entries, records
from knnlm_store_milvus.indexes import Plan
from tests.milvus_support import (
    DIMENSION,
    created,
    keys,
    lite,
    of_keys,
    refuse_aliased,
    served,
)

__all__ = ["lite"]


def test_looking_makes_no_file(lite: Location) -> None:
    store = MilvusBackend.connect(lite)
    assert not store.exists()
    assert MilvusBackend.names(lite) == []
    assert MilvusBackend.aliases(lite) == {}
    assert store.size() is None
    with pytest.raises(StoreNotFound):
        store.drop()
    with pytest.raises(StoreNotFound):
        MilvusBackend.remove_alias(lite)
    store.close()
    assert not Path(lite.root).exists()


def test_its_folder_is_not_read_as_texts(lite: Location) -> None:
    created(lite).close()
    root = Path(lite.root)
    (root.parent / "a.txt").write_text("text")
    (problem, document) = Corpus([str(root.parent)])
    assert isinstance(problem, Problem)
    assert problem.what == f"1 folder of datastores or bundles left out: {root.name}."
    assert isinstance(document, Document)
    assert document.name == "a.txt"


def test_lite_is_exact_and_float32(lite: Location) -> None:
    store = MilvusBackend.connect(lite)
    for spec in (
        Spec(8, "float16"),
        Spec(8, options={"index": "hnsw"}),
        Spec(8, options={"x": ""}),
    ):
        with pytest.raises(UsageError):
            store.create(spec, {})
    assert not store.exists()
    store.create(Spec(8, options={"index": "exact"}), {})
    assert store.describe_index() == "exact"
    assert store.build_index() is None
    assert store.versions()["server"].startswith("milvus-lite 3.")
    with pytest.raises(UsageError, match="16,384"):
        store.search(keys(1), 16385)
    store.close()


def test_datastores_share_a_file_and_not_a_fate(lite: Location) -> None:
    law, lore = created(lite), created(replace(lite, name="lore-2"))
    law.upsert(of_keys(keys(20)))
    assert MilvusBackend.names(lite) == ["law", "lore-2"]
    assert (law.size() or 0) > (lore.size() or 0) > 0
    law.drop()
    law.close()
    assert MilvusBackend.names(lite) == ["lore-2"]
    assert lore.get_records(["manifest"]) == {"manifest": b"m"}
    lore.close()


_OTHER = """
import sys
from knnlm_store.errors import BackendUnavailable
from knnlm_store.values import Location
from knnlm_store_milvus import MilvusBackend
try:
    print(MilvusBackend.connect(Location("milvus", sys.argv[1], "law")).count())
except BackendUnavailable as error:
    print(error)
"""


def test_one_process_at_a_time(lite: Location) -> None:
    def other() -> str:
        command = [sys.executable, "-c", _OTHER, lite.root]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    store, second = created(lite), MilvusBackend.connect(lite)
    store.upsert(of_keys(keys(20)))
    store.close()
    assert "in use by another process" in other()
    assert second.count() == 20
    second.close()
    assert other() == "20\n"


def test_only_servers_are_pinged(lite: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """Milvus Lite would hang up on a connection that idles for half a minute."""
    asked: list[dict[str, Any]] = []
    channel = grpc.insecure_channel

    def recording(target: str, options: list[tuple[str, Any]]) -> grpc.Channel:
        asked.append(dict(options))
        return channel(target, options=options)

    with served(lite) as (server, _):
        monkeypatch.setattr(grpc, "insecure_channel", recording)
        for location in (lite, server):
            store = MilvusBackend.connect(location)
            assert not store.exists()
            store.close()
    of_file, of_server = asked
    every, idle = "grpc.keepalive_time_ms", "grpc.keepalive_permit_without_calls"
    assert (of_file[every], of_file[idle]) == (2**31 - 1, 0)
    assert (of_server[every], of_server[idle]) == (10_000, True)  # as pymilvus has it


def test_file_that_is_none(lite: Location) -> None:
    Path(lite.root).write_bytes(b"SQLite")
    with pytest.raises(StoreError, match="no file of this Milvus Lite"):
        MilvusBackend.connect(lite)


def test_requests_are_split(lite: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small limits in place of large data: what is found does not depend on them."""
    store = created(lite)
    monkeypatch.setattr(entries, "_REQUEST", 2000)
    store.upsert(of_keys(keys(150)))
    assert store.count() == 150
    within = DocumentFilter.keeping([1])
    whole = store.search(keys(7, 1), 20, within=within, with_keys=True)
    monkeypatch.setattr(connection, "PAGE", 32)
    for name, limit in (("_HITS", 45), ("_REPLY", 4000), ("_LITE_BYTES", 8 * 4 * 150 * 2)):
        with monkeypatch.context() as patch:
            patch.setattr(entries, name, limit)
            split = store.search(keys(7, 1), 20, within=within, with_keys=True)
            assert len(list(store.scan(with_keys=True))) >= 1
        np.testing.assert_allclose(split.distances, whole.distances, atol=1e-4)
        assert (split.ids == whole.ids).all()
        assert split.keys is not None
        assert whole.keys is not None
        np.testing.assert_array_equal(split.keys, whole.keys)
    store.close()


def _rows(store: MilvusBackend) -> list[str]:
    table = store._opened().records
    return [r["id"] for r in store._connected().query(table.name, 'id != ""', ["id"])]


def test_old_chunks_go_with_their_value(lite: Location) -> None:
    store = created(lite)
    for value in (b"a" * 200_000, b"b" * 100_000, b"c"):
        store.put_records({"manifest": value})
        assert store.get_records(["manifest"]) == {"manifest": value}
        assert len(_rows(store)) == 1 + (-(-len(value) // records._CHUNK) if len(value) > 1 else 0)
    store.put_records({"manifest": b"a" * 200_000})
    store.delete_records(["manifest"])
    assert _rows(store) == []
    store.close()


def test_lost_chunk_is_told(lite: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    store = created(lite)
    store.put_records({"manifest": b"a" * 200_000})
    table, chunk = store._opened().records.name, max(_rows(store))
    store._connected().delete(table, f'id in ["{chunk}"]')
    monkeypatch.setattr(time, "sleep", lambda _: None)
    for read in (lambda: store.get_records(["manifest"]), lambda: list(store.scan_records(""))):
        with pytest.raises(StoreCorrupt, match="lacks a part"):
            read()
    store.close()


class Hasty(MilvusBackend):
    patience = 0.3


def test_interrupted_making(lite: Location) -> None:
    """A creator that died before its commit: told, removed by drop, made again."""
    store = Hasty.connect(lite)
    plan = Plan.of(Spec(DIMENSION), lite=True)
    store._connected().create("law__records", records.fields(), plan.mark("dead"), 1)
    assert not store.exists()
    with pytest.raises(StoreNotFound):  # it may be under way
        store.spec()
    assert Hasty.names(lite) == []
    with pytest.raises(StoreCorrupt, match="interrupted") as told:
        store.create(Spec(DIMENSION), {})
    assert told.value.hint == f"Run: knnlm-store rm {lite}"
    with pytest.raises(StoreCorrupt, match="interrupted"):
        store.spec()
    store.drop()
    with pytest.raises(StoreNotFound):
        store.drop()
    store.create(Spec(DIMENSION), {"a": b"1"})
    assert store.get_records(["a"]) == {"a": b"1"}
    store.close()


def test_creator_that_died_after_its_commit(lite: Location) -> None:
    """The datastore is there; whoever opens it indexes and loads it."""
    store = MilvusBackend.connect(lite)
    plan, spec, held = Plan.of(Spec(DIMENSION), lite=True), Spec(DIMENSION), store._connected()
    held.create("law__records", records.fields(), plan.mark("dead"), 1)
    records.RecordTable(held, "law__records").put({"a": b"1"}, fresh=True)
    held.create("law", entries.fields(spec), plan.mark("dead"), 1)
    with pytest.raises(StoreExists):
        store.create(spec, {})
    other = MilvusBackend.connect(lite)
    other.upsert(of_keys(keys(5)))
    assert other.count() == 5
    assert other.get_records(["a"]) == {"a": b"1"}
    for opened in (store, other):
        opened.close()


def test_foreign_collection_is_left_alone(lite: Location) -> None:
    store = MilvusBackend.connect(lite)
    held = store._connected()
    held.create("law", entries.fields(Spec(DIMENSION)), "", 1)
    assert not store.exists()
    with pytest.raises(StoreExists, match="did not make"):
        store.create(Spec(DIMENSION), {})
    with pytest.raises(StoreNotFound):
        store.drop()
    with pytest.raises(StoreExists):
        created(replace(lite, name="lore")).set_alias("law")
    assert "law" in held.names()
    assert MilvusBackend.names(lite) == ["lore"]


def test_aliases_go_with_their_datastore(lite: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Milvus refuses to drop what has aliases, as newer ones do."""
    store, lore = created(lite), created(replace(lite, name="lore"))
    refuse_aliased(store, monkeypatch)
    for alias in ("today", "in-force"):
        store.set_alias(alias)
    lore.set_alias("other")
    store.drop()
    assert MilvusBackend.names(lite) == ["lore"]
    assert MilvusBackend.aliases(lite) == {"other": "lore"}
    again = created(replace(lite, name="today"))
    assert again.count() == 0
    for opened in (store, lore, again):
        opened.close()


def test_dropped_by_another_and_made_anew(lite: Location) -> None:
    store, other = created(lite), MilvusBackend.connect(lite)
    store.upsert(of_keys(keys(5)))
    other.drop()
    with pytest.raises(StoreNotFound):
        store.count()
    other.create(Spec(4), {})
    assert store.spec() == Spec(4)
    assert store.count() == 0
    for opened in (store, other):
        opened.close()
