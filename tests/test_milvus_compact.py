"""Files of Milvus Lite without what was deleted: all of them, and whole at whatever instant."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from milvus_lite.storage.manifest import Manifest

from knnlm_store.backend import Compactable
from knnlm_store.errors import StorageFull, StoreError
from knnlm_store.testing.truth import compare
from knnlm_store.values import Entries, Location
from knnlm_store_milvus import LiteBackend, MilvusBackend, compaction
from tests.milvus_support import created, keys, lite, of_keys
from tests.remains import remains, traces

__all__ = ["lite"]

KEPT, GONE = of_keys(keys(50, 1), 1000), of_keys(keys(30, 2), 2000)


def worn(location: Location) -> LiteBackend:
    """A datastore in several files and an index of each, with deleted and replaced entries.

    Left alone, Milvus Lite indexes nothing; but it could be told to.
    """
    store = created(location)
    assert isinstance(store, LiteBackend)
    with store._connected().calling() as (client, _):
        wanted = client.prepare_index_params()
        wanted.add_index("key", index_type="FLAT", metric_type="L2")
        client.create_index("law", wanted)
        client.load_collection("law")
    for part in (Entries.concatenate([KEPT[:20], GONE]), KEPT[20:]):
        store.upsert(part)
        store._connected().flush("law")
    compaction._engine(Path(location.root)).get_collection("law")._wait_for_bg()
    store.upsert(KEPT[:5])
    store.delete([2000])
    return store


def folder_of(location: Location) -> Path:
    return Path(location.root) / "collections" / "law"


def assert_whole(store: MilvusBackend) -> None:
    assert store.count() == len(KEPT)
    queries = keys(5, 9)
    compare(store.search(queries, 7), KEPT, queries, 7, 1e-5, 1.0)


def test_one_file_and_no_list_is_left(lite: Location) -> None:
    """And no index of a file that went; compacting again changes nothing."""
    gone, kept = traces(GONE, []), traces(KEPT, [])
    with closing(worn(lite)) as store:
        before = remains(folder_of(lite), gone, kept)
        assert any(line.endswith(".idx: key, float32") for line in before)
        store.compact()
        assert remains(folder_of(lite), gone, kept) == []
        names = {path.name: path.stat().st_ino for path in folder_of(lite).rglob("*.*")}
        assert sum(name.endswith(".parquet") for name in names) == 1
        assert sum(name.endswith(".idx") for name in names) == 1
        assert_whole(store)
        store.compact()
        again = {path.name: path.stat().st_ino for path in folder_of(lite).rglob("*.parquet")}
        assert names.items() >= again.items()
        assert_whole(store)


def test_killed_at_any_instant_it_is_whole(
    lite: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there before each change of the manifest and each removal, and at the end."""
    pictures: list[Path] = []

    def picture() -> None:
        pictures.append(tmp_path / f"picture{len(pictures)}.db")
        shutil.copytree(lite.root, pictures[-1])

    def told(change: Callable[..., None]) -> Callable[..., None]:
        def changed(*arguments: Any, **named: Any) -> None:
            picture()
            change(*arguments, **named)

        return changed

    with closing(worn(lite)) as store, monkeypatch.context() as patch:
        store._connected().flush("law")  # which has such instants of its own
        for owner, name in ((Manifest, "save"), (os, "remove"), (Path, "unlink")):
            patch.setattr(owner, name, told(getattr(owner, name)))
        compaction.compact(Path(lite.root), "law")
        patch.undo()
        picture()
    assert len(pictures) > 6
    for place in pictures:
        with closing(MilvusBackend.connect(replace(lite, root=str(place)))) as left:
            assert_whole(left)


def test_what_fails_is_told(lite: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: OSError) -> Callable[..., None]:
        def failing(*_: Any) -> None:
            raise error

        return failing

    with closing(worn(lite)) as store:
        monkeypatch.setattr(compaction, "_merge", fail(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(StorageFull):
            store.compact()
        monkeypatch.setattr(compaction, "_merge", fail(OSError(errno.EACCES, "Permission denied")))
        with pytest.raises(StoreError, match=r"cannot be compacted \(Permission denied\)\."):
            store.compact()
        monkeypatch.undo()
        monkeypatch.setattr(compaction, "_engine", lambda _: object())
        with pytest.raises(StoreError, match="This version of Milvus Lite") as told:
            store.compact()
        assert told.value.hint.endswith("knnlm-store copy STORE OTHER")
        monkeypatch.undo()
        assert_whole(store)


def test_a_path_with_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(created(Location("milvus", "deep/../file.db", "law"))) as store:
        assert isinstance(store, LiteBackend)
        store.upsert(KEPT)
        store.compact()
        assert_whole(store)


def test_servers_compact_by_themselves(lite: Location) -> None:
    assert not issubclass(MilvusBackend, Compactable)
    assert isinstance(MilvusBackend.connect(lite), Compactable)
