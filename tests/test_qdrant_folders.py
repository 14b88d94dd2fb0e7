"""Whose a folder is: nothing of another program's is ever touched, and reading leaves no trace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from knnlm_store.errors import StoreCorrupt, StoreNotWritable
from knnlm_store.values import Location
from knnlm_store_milvus import MilvusBackend
from knnlm_store_qdrant import QdrantBackend
from knnlm_store_qdrant.engine import acquire
from knnlm_store_qdrant.engine.folder import MARKER
from tests.cli_support import run, write_corpus
from tests.milvus_support import created as created_in_milvus
from tests.qdrant_engine_support import alone, create, files, opened, put, refusal
from tests.qdrant_support import created, document

Tree = dict[str, tuple[int, bytes | None]]


def tree(folder: Path) -> Tree:
    """All that is in a folder: mode and content of each path, and the folder's own."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else None,
        )
        for path in [folder, *folder.rglob("*")]
    }


def written(folder: Path, *paths: str) -> None:
    for each in paths:
        path = folder / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"what is in {each}")


# -- others' -----------------------------------------------------------------------------------


def of_a_server(folder: Path) -> None:
    """What a Qdrant server keeps in its folder `storage`."""
    written(
        folder,
        *("raft_state.json", "aliases/data.json", ".qdrant-initialized"),
        *(f"collections/law/{each}" for each in ("config.json", "0/shard_config.json")),
        *(f"collections/law/0/{each}" for each in ("replica_state.json", "wal/open-1")),
        "collections/law/0/segments/8815f0b1/segment.json",
        "collections/law.0123456789ab/files-0123456789ab/wal",  # however like ours it is called
    )
    (folder / "collections" / "empty").mkdir()


def of_milvus_lite(folder: Path) -> None:
    created_in_milvus(Location("milvus", str(folder), "law")).close()


def of_local_mode(folder: Path) -> None:
    """What qdrant-client keeps where it is told a path; its lock alone is not a marker."""
    written(folder, ".lock", "meta.json", "collection/law/storage.sqlite")


def of_anybody(folder: Path) -> None:
    written(folder, "collections/letters/1.txt", "notes.txt")


def of_an_empty_shelf(folder: Path) -> None:
    (folder / "collections" / "to be").mkdir(parents=True)


@pytest.mark.parametrize(
    "fill", [of_a_server, of_milvus_lite, of_local_mode, of_anybody, of_an_empty_shelf]
)
def test_others_folders_are_left_alone(
    tmp_path: Path, fill: Callable[[Path], None], saved_model: Path
) -> None:
    """By commands that read and by those that write; the user is told to take another."""
    folder = tmp_path / "theirs.db"
    folder.mkdir()
    fill(folder)
    before, uri = tree(folder), f"qdrant:{folder}/law"
    corpus = write_corpus(tmp_path / "corpus", {"a.txt": "The creditor shall disclose."})
    said = f"{folder} holds other files: it is not a folder of this engine's datastores."
    for command in (
        ("ls", f"qdrant:{folder}"),
        ("info", uri),
        ("rm", uri, "--yes"),
        ("ingest", "--store", uri, "--model", saved_model, corpus),
    ):
        hint = "Give another folder, one that is new or empty."
        assert run(*command).failure() == (1, said, hint)
        assert tree(folder) == before
    with pytest.raises(StoreCorrupt):
        QdrantBackend.connect(Location("qdrant", str(folder), "law"))
    assert tree(folder) == before


def test_milvus_lite_goes_on_after_a_wrong_scheme(tmp_path: Path) -> None:
    location = Location("milvus", str(tmp_path / "file.db"), "law")
    created_in_milvus(location).close()
    assert run("ls", f"qdrant:{location.root}").code == 1
    assert MilvusBackend.names(location) == ["law"]


def test_folder_that_others_fill_meanwhile(tmp_path: Path) -> None:
    """Between the start of the engine and its first write."""
    with opened(tmp_path) as (_, client):
        assert client.get_collections().collections == []
        of_anybody(tmp_path)
        before = tree(tmp_path)
        for call in (client.get_collections, lambda: create(client, "x")):
            with refusal(400, "holds other files"):
                call()
        assert tree(tmp_path) == before


# -- ours --------------------------------------------------------------------------------------


def test_reading_an_empty_folder_makes_nothing(tmp_path: Path) -> None:
    location = Location("qdrant", str(tmp_path), "law")
    assert QdrantBackend.names(location) == []
    assert QdrantBackend.aliases(location) == {}
    store = QdrantBackend.connect(location)
    assert not store.exists()
    assert list(tmp_path.iterdir()) == []
    created(store)
    assert (tmp_path / MARKER).is_file()
    store.close()


def test_root_of_a_file_system_is_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    with opened(tmp_path) as (_, client):
        create(client, "x")
    with opened(tmp_path) as (_, client):
        assert client.collection_exists("x")
    assert (tmp_path / "lost+found").is_dir()


def test_only_our_leftovers_are_swept_and_only_by_a_write(tmp_path: Path) -> None:
    """In a folder of ours, what is like ours but has more in it is somebody's, too."""
    with opened(tmp_path) as (_, client):
        create(client, "x")
        create(client, "y")
    (about,) = (p for p in tmp_path.glob("collections/*/collection.json") if '"x"' in p.read_text())
    about.unlink()
    (kept,) = {p.parent for p in tmp_path.glob("collections/*/collection.json")}
    written(kept, "files-0123456789ab/old", "files-mine/notes")
    half = about.parent
    theirs = ("backup/notes", "x.0123456789ab/notes", "x.0123456789ab/files-0123456789ab/wal")
    written(tmp_path / "collections", *theirs)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "collections" / "z.0123456789ab").symlink_to(tmp_path / "elsewhere")
    with opened(tmp_path) as (_, client):
        assert [each.name for each in client.get_collections().collections] == ["y"]
        assert client.count("y").count == 0
        assert half.exists()
        assert len(files(tmp_path)) == 5
        put(client, "y", document(1, 3).keys)
        assert not half.exists()
        assert {path.name for path in kept.glob("files-*")} >= {"files-mine"}
        assert len(list(kept.glob("files-*"))) == 2
    for each in theirs:
        assert (tmp_path / "collections" / each).read_text() == f"what is in {each}"
    assert (tmp_path / "collections" / "z.0123456789ab").is_symlink()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """The engine maps files for writing as it opens them, so it cannot read there either."""
    with opened(tmp_path / "ours") as (_, client):
        create(client, "x")
    with read_only(tmp_path / "ours"):
        before = tree(tmp_path / "ours")
        with pytest.raises(StoreNotWritable, match="must write there, even to read") as caught:
            QdrantBackend.connect(Location("qdrant", str(tmp_path / "ours"), "x"))
        assert "copy the folder" in caught.value.hint
        assert tree(tmp_path / "ours") == before


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take away the right to write; root keeps it, and gets a mount that has none."""
    if os.geteuid():
        paths = [folder, *folder.rglob("*")]
        for path in paths:
            path.chmod(path.stat().st_mode & ~0o222)
        yield
        for path in paths:
            path.chmod(path.stat().st_mode | 0o200)
        return
    for options in (["--bind"], ["-o", "remount,ro,bind"]):
        mount = subprocess.run(
            ["mount", *options, str(folder), str(folder)], capture_output=True, check=False
        )
        if mount.returncode:
            pytest.skip(f"mounting is refused: {mount.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_program_alone_says_so(tmp_path: Path) -> None:
    of_anybody(tmp_path)
    with alone(tmp_path) as (process, said):
        assert said["kind"] == "foreign"
        assert process.wait(10) == 1


# -- bad places --------------------------------------------------------------------------------


def test_file_is_no_folder(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("x")
    with pytest.raises(StoreNotWritable, match="cannot be used as a folder") as caught:
        acquire(place)
    assert caught.value.hint


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Nothing is there to read, and the first write is told why."""
    (tmp_path / "file").write_text("x")
    with opened(tmp_path / "file" / "store") as (_, client):
        assert not client.collection_exists("x")
        with refusal(500, "Not a directory"):
            create(client, "x")


def test_damaged_description(tmp_path: Path) -> None:
    with opened(tmp_path) as (_, client):
        create(client, "x")
    (about,) = tmp_path.glob("collections/*/collection.json")
    about.write_text("{")
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        acquire(tmp_path)
