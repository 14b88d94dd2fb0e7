"""Whatever goes wrong below ends as one sentence of ours."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from knnlm_store.errors import (
    BackendUnavailable,
    InvalidEntries,
    KnnlmError,
    StorageFull,
    StoreCorrupt,
    StoreError,
    StoreExists,
    StoreMismatch,
    StoreNotFound,
    StoreNotWritable,
    UsageError,
)
from knnlm_store.values import Location, Spec
from knnlm_store_faiss import FaissBackend
from knnlm_store_faiss.failures import mapped
from tests.faiss_support import (
    DIMENSION,
    Early,
    clustered,
    connect,
    created,
    document,
    of_keys,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed datastore of 40 entries."""
    store = created(tmp_path / "store")
    store.upsert(document(1, 40))
    store.close()
    return tmp_path / "store"


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.write(content)

    return damage


def execute(statement: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        database = sqlite3.connect(folder / "store.sqlite")
        with database:
            database.execute(statement)
        database.close()

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "keys cut": (cut("keys.1", 64 + 39 * 2 * DIMENSION), "keys.1 is cut short: it holds 39 of 40"),
    "tokens cut": (cut("tokens.1", 64 + 8), "tokens.1 is cut short: it holds 2 of 40 rows."),
    "tokens empty": (cut("tokens.1", 0), "tokens.1 does not begin as this datastore's file."),
    "keys of others": (overwrite("keys.1", b"GIF89a"), "keys.1 does not begin as this"),
    "keys gone": (lambda folder: (folder / "keys.1").unlink(), "keys.1 is missing."),
    "ledger overwritten": (overwrite("store.sqlite", b"x" * 200), "store.sqlite is damaged."),
    "ledger cut": (cut("store.sqlite", 5000), "store.sqlite is damaged."),
    "ledger empty": (cut("store.sqlite", 0), "store.sqlite is not the file of a datastore."),
    "ledger of others": (execute("PRAGMA application_id = 7"), "is not the file of a datastore."),
    "state gone": (execute("DELETE FROM state"), "store.sqlite lacks the datastore's state."),
    "table gone": (execute("DROP TABLE segments"), "(no such table: segments)."),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named(folder: Path, case: str) -> None:
    """Searching, and writing where it would make things worse, names the damaged file."""
    damage, words = DAMAGES[case]
    damage(folder)
    store = connect(folder)
    for call in (
        lambda: store.search(document(1, 1).keys, 3),
        lambda: store.upsert(document(1, 40)),
    ):
        with pytest.raises(StoreCorrupt) as caught:
            call()
        assert words in str(caught.value)
        assert str(folder) in str(caught.value)
        assert "Restore" in caught.value.hint
    store.drop()  # is the way out
    assert not folder.exists()
    store.close()


def test_newer_format_is_refused(folder: Path) -> None:
    execute("PRAGMA user_version = 2")(folder)
    with pytest.raises(StoreMismatch, match="has format 2; this version reads up to 1") as caught:
        connect(folder).count()
    assert caught.value.field == "format"


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    """A folder with other files is not taken over, and dropping spares them."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, words in (("notes", "has files and is no datastore"), ("file", "is a file")):
        with pytest.raises(StoreExists, match=words):
            created(tmp_path / name)
    store = created(tmp_path / "store")
    (tmp_path / "store" / "readme.txt").write_text("mine")
    store.drop()
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["readme.txt"]
    assert not FaissBackend.names(Location("faiss", str(tmp_path), ""))


@pytest.mark.parametrize("name", ["..", ".hidden", "", "a/b", "a\0b"])
def test_names_that_are_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a datastore"):
        FaissBackend.connect(Location("faiss", str(tmp_path), name))


def test_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "store"
    assert FaissBackend.names(Location("faiss", str(tmp_path / "file"), "")) == []
    assert not connect(inside).exists()
    with pytest.raises(StoreError, match="file"):
        created(inside)


def test_long_wait_for_another_writer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FaissBackend, "busy_timeout", 0.05)
    store = connect(folder)
    other = sqlite3.connect(folder / "store.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BackendUnavailable, match="Another process has been writing") as caught:
        store.upsert(document(200, 1))
    assert caught.value.retryable
    assert store.count() == 40
    other.execute("ROLLBACK")
    other.close()
    store.upsert(document(200, 1))
    assert store.count() == 41
    store.close()


def test_float16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    keys = np.full((1, DIMENSION), 70000, np.float32)
    for storage in ("int8", "float32"):
        store = created(tmp_path / storage, storage)
        store.upsert(of_keys(keys))
        assert store.search(keys, 1).distances[0, 0] < 1
        store.close()
    store = created(tmp_path / "store")
    with pytest.raises(InvalidEntries, match="65504") as caught:
        store.upsert(of_keys(keys))
    assert "float32 or int8" in caught.value.hint
    assert store.count() == 0
    store.close()


def _all_under(base: type[BaseException]) -> Iterator[type[BaseException]]:
    yield base
    for child in base.__subclasses__():
        yield from _all_under(child)


@pytest.mark.parametrize("kind", list(_all_under(sqlite3.Error)), ids=lambda kind: kind.__name__)
def test_every_sqlite_error_is_mapped(folder: Path, kind: type[sqlite3.Error]) -> None:
    with pytest.raises(StoreError, match="SQLite failed"), mapped(folder):
        raise kind("something")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EROFS, "x"), StoreNotWritable),
        (OSError(errno.EDQUOT, "x"), StorageFull),
        (OSError(errno.EIO, "x"), StoreError),
        (FileNotFoundError(errno.ENOENT, "x", "keys.1"), StoreCorrupt),
        (RuntimeError("Error in void faiss::train()"), StoreError),
        (MemoryError(), StoreError),
        (RuntimeError("a bug"), RuntimeError),
    ],
    ids=repr,
)
def test_other_errors(folder: Path, error: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught, mapped(folder):
        raise error
    assert type(caught.value) is expected


def test_too_little_memory_for_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is trained; searches go on."""
    store = created(tmp_path / "store", kind=Early)
    store.upsert(of_keys(clustered(600, DIMENSION, seed=1)))
    monkeypatch.setattr("knnlm_store_faiss.ivf._available_memory", lambda: 1000)
    with pytest.raises(StoreError, match=r"An index over 600 entries takes 0\.0 GiB of memory"):
        store.build_index()
    assert store.search(clustered(1, DIMENSION, seed=2), 600).ids.min() >= 0
    assert store.describe_index() == "exact (no index built yet)"
    store.close()


def test_absent_everywhere(tmp_path: Path) -> None:
    store = connect(tmp_path / "none")
    for call in (store.build_index, store.compact, store.describe_index):
        with pytest.raises(StoreNotFound, match="There is no datastore at"):
            call()
    assert store.size() is None
    with pytest.raises(UsageError, match="keeps keys as float16, float32, int8, not pq"):
        store.create(Spec(3, "pq"), {})
    assert issubclass(StoreNotFound, KnnlmError)
