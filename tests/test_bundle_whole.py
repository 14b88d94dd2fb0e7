"""An export leaves a whole bundle or none; an import that was killed is finished by the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knnlm_store import intents
from knnlm_store.bundle import check, export_bundle, import_bundle, open_bundle, tables, writing
from knnlm_store.datastore import Datastore
from knnlm_store.errors import (
    InvalidEntries,
    StorageFull,
    StoreError,
    StoreExists,
    StoreNotWritable,
)
from knnlm_store.values import Entries
from tests.bundle_support import LENGTHS, NUMBERS, assert_equal, small, store_at
from tests.doctor_support import APART, entries
from tests.ingest_support import an_intent, assert_whole, dead_writer


@pytest.fixture
def store() -> Iterator[Datastore]:
    with store_at("memory:") as made:
        yield made


# -- while documents change ------------------------------------------------------------------------


@pytest.mark.parametrize("which", [1, 3], ids=["small", "in pieces"])
def test_a_document_that_changes_meanwhile_is_left_out(
    store: Datastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Its entries go while it is read, the last of them first."""
    small(monkeypatch)
    gone = NUMBERS[which]
    scan, scanned = store.backend.scan, 0

    def vanishing(**options: Any) -> Iterator[Entries]:
        nonlocal scanned
        for batch in scan(**options):
            scanned += gone in batch.documents
            last = scanned > (which == 3)  # the first piece is still whole
            keep = (batch.documents != gone) | (batch.positions < LENGTHS[which] - 1)
            yield batch[keep] if last else batch

    monkeypatch.setattr(store.backend, "scan", vanishing)
    report = export_bundle(store, tmp_path / "bundle")
    assert report.changed == [f"s/{gone}.txt"]
    assert report.entries == sum(LENGTHS) - LENGTHS[which]
    with open_bundle(tmp_path / "bundle") as bundle:
        check(bundle)
        assert {d.version.number for d in bundle.documents()} == {*NUMBERS} - {gone}
        assert bundle.backend.count() == report.entries


def test_what_is_unfinished_is_counted(store: Datastore, tmp_path: Path) -> None:
    """It is no document yet, and not in the bundle."""
    intents.put(store.backend, [an_intent("s/new", 99 * APART, dead_writer())])
    store.backend.upsert(entries(np.ones((3, 16), np.float32), 99 * APART))
    report = export_bundle(store, tmp_path / "bundle")
    assert (report.unfinished, report.entries) == (1, sum(LENGTHS))
    with open_bundle(tmp_path / "bundle") as bundle:
        assert list(bundle.backend.scan_records("intent/")) == []


def test_entries_that_cannot_be_are_not_exported(
    store: Datastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(**options: Any) -> Iterator[Entries]:
        for batch in scan(**options):
            yield replace(batch, keys=batch.keys * np.float32(np.nan))

    scan = store.backend.scan
    monkeypatch.setattr(store.backend, "scan", spoilt)
    with pytest.raises(InvalidEntries):
        export_bundle(store, tmp_path / "bundle")
    assert os.listdir(tmp_path) == []


# -- never half there ------------------------------------------------------------------------------


def test_stopped(store: Datastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    asked = iter([False, True])
    report = export_bundle(store, tmp_path / "bundle", stop=lambda: next(asked))
    assert report.interrupted
    assert os.listdir(tmp_path) == []


def test_what_a_killed_export_left_goes(store: Datastore, tmp_path: Path) -> None:
    """Nothing of it looks like a bundle, and the next export to the same folder removes it."""
    script = (
        "import os, sys, signal\n"
        "from tests.bundle_support import store_at\n"
        "from knnlm_store.bundle import export_bundle, writing\n"
        "writing._write_documents = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "export_bundle(store_at('memory:'), sys.argv[1])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "bundle")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == [".bundle.export"]
    assert os.listdir(tmp_path / ".bundle.export") == ["entries-00000.parquet"]
    export_bundle(store, tmp_path / "bundle")
    assert os.listdir(tmp_path) == ["bundle"]
    with open_bundle(tmp_path / "bundle") as bundle:
        check(bundle)


def test_no_space(store: Datastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables._Hashed, "write", full)
    with pytest.raises(StorageFull, match="No space is left for"):
        export_bundle(store, tmp_path / "bundle")
    assert os.listdir(tmp_path) == []


def test_folders_that_cannot_be_written(store: Datastore, tmp_path: Path) -> None:
    """What is there stays as it is; an empty folder will do."""
    taken, closed = tmp_path / "taken", tmp_path / "closed"
    taken.mkdir()
    (taken / "letter").write_text("dear")
    with pytest.raises(StoreExists, match="taken exists already"):
        export_bundle(store, taken)
    (tmp_path / "empty").mkdir()
    export_bundle(store, tmp_path / "empty")
    with pytest.raises(StoreExists):
        export_bundle(store, tmp_path / "empty")
    hidden = tmp_path / ".new.export"
    hidden.mkdir()
    (hidden / "letter").write_text("dear")
    with pytest.raises(StoreExists, match="no file of a bundle"):
        export_bundle(store, tmp_path / "new")
    assert (hidden / "letter").read_text() == (taken / "letter").read_text() == "dear"
    if os.geteuid():
        closed.mkdir(mode=0o500)
        with pytest.raises(StoreNotWritable):
            export_bundle(store, closed / "bundle")


def test_two_exports_at_once(
    store: Datastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is refused, and leaves the first alone."""
    write = writing._write_documents

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(writing, "_write_documents", write)
        with pytest.raises(StoreError, match="Another process is exporting"):
            export_bundle(store, tmp_path / "bundle")
        return write(*arguments)

    monkeypatch.setattr(writing, "_write_documents", meanwhile)
    export_bundle(store, tmp_path / "bundle")
    with open_bundle(tmp_path / "bundle") as bundle:
        check(bundle)


IMPORT = """
import sys
from knnlm_store import writer
from knnlm_store.bundle import import_bundle
writer._GROUP_SECONDS, writer._BATCH = 0.0, 1
import_bundle(sys.argv[1], sys.argv[2], progress=lambda r: print(r.copied, flush=True))
"""


def test_killed_in_the_middle_of_an_import(tmp_path: Path) -> None:
    """The same import again makes it whole, and skips what was done."""
    lengths = [20] * 200
    with store_at("memory:", "float32", *lengths) as store:
        export_bundle(store, tmp_path / "bundle")
        uri = f"faiss:{tmp_path}/law"
        script = IMPORT.replace("import sys\n", "import sys\nfrom knnlm_store import copying\n", 1)
        script = script.replace("writer._GROUP_S", "copying._DOCUMENTS = 4\nwriter._GROUP_S", 1)
        command = [sys.executable, "-c", script, str(tmp_path / "bundle"), uri]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        for line in process.stdout:
            if int(line) >= 40:
                process.kill()
                break
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        report = import_bundle(tmp_path / "bundle", uri)
        assert 0 < report.skipped < len(lengths)
        assert report.copied == len(lengths) - report.skipped
        with Datastore.open(uri) as new:
            assert_whole(new)
            assert_equal(new, store)
