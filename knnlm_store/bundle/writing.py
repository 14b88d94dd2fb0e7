"""From a datastore to a bundle: streamed, with no model, and never half there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from knnlm_store import intents
from knnlm_store.bundle import tables
from knnlm_store.bundle.folder import becoming
from knnlm_store.bundle.listing import NAME, BundleFile, Listing
from knnlm_store.bundle.shards import Shards
from knnlm_store.bundle.tables import TableFile
from knnlm_store.copying import BOOKKEEPING, groups
from knnlm_store.datastore import Datastore
from knnlm_store.documents import DocumentRecord, Version
from knnlm_store.registry import require
from knnlm_store.retry import retrying
from knnlm_store.values import MAX_ID, Entries

_PIECE = 64 * 1024 * 1024  # bytes of keys of one document that are held at once
_BATCH = 4 * 1024 * 1024  # bytes of keys that a scan reads at once
_DOCUMENTS = 4096  # in a row group of the catalog


@dataclass
class ExportReport:
    """What an export did. `entries` of `total`; `changed` names documents that were left out.

    bytes: of the bundle. unfinished: changes that were under way, or that a killed run had left.
    """

    documents: int = 0
    entries: int = 0
    total: int = 0
    bytes: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    unfinished: int = 0
    changed: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Give the report as one JSON-able object."""
        return asdict(self)


class _StoppedError(Exception):
    """The user wants no bundle."""


def export_bundle(
    store: Datastore,
    folder: str | Path,
    *,
    progress: Callable[[ExportReport], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> ExportReport:
    """Write a datastore into a new folder, as a bundle.

    Documents that change meanwhile are left out and named. stop: asked between documents; once it
    says so nothing is left of the bundle. Raises MissingDependency without pyarrow, StoreExists
    if the folder is there, InvalidEntries for entries that no datastore may hold, and what the
    file system and the backend raise.
    """
    require("pyarrow", "data")
    report = ExportReport()
    try:
        with becoming(Path(folder)) as hidden:
            _Export(store, hidden, report, progress, stop).run()
    except _StoppedError:
        report.interrupted = True
    return report


class _Export:
    def __init__(
        self,
        store: Datastore,
        folder: Path,
        report: ExportReport,
        progress: Callable[[ExportReport], None],
        stop: Callable[[], bool],
    ) -> None:
        self._store, self._folder, self._report = store, folder, report
        self._progress, self._stop = progress, stop
        self._again = retrying()
        self._spec = self._again(store.backend.spec)
        self._shards = Shards(folder, self._spec)

    def run(self) -> None:
        started, report, backend = time.monotonic(), self._report, self._store.backend
        documents = self._again(lambda: sorted(self._store.documents(), key=lambda d: d.id))
        report.unfinished = self._again(lambda: sum(1 for _ in intents.scan(backend)))
        report.total = sum(document.version.tokens for document in documents)
        whole: list[DocumentRecord] = []
        for group in groups(documents, self._spec.dimension):
            self._look_up()
            whole += self._write(group)
            report.documents = len(whole)
            report.seconds = time.monotonic() - started
            self._progress(report)
        report.changed = sorted({d.id for d in documents} - {d.id for d in whole})
        self._finish(whole)
        report.seconds = time.monotonic() - started

    def _look_up(self) -> None:
        if self._stop():
            raise _StoppedError

    def _write(self, group: list[DocumentRecord]) -> list[DocumentRecord]:
        """Write the entries of documents; gives those that were whole."""
        size = max(1, _PIECE // (4 * self._spec.dimension))
        if len(group) == 1 and group[0].version.tokens > size:
            return self._write_large(group[0], size)
        read = self._again(self._read, group)
        for entries in read:
            if entries is not None:
                self._add(entries)
        return [d for d, entries in zip(group, read, strict=True) if entries is not None]

    def _write_large(self, document: DocumentRecord, size: int) -> list[DocumentRecord]:
        """Write a document piece by piece, each from a scan of it, in files of its own."""
        mark = self._shards.mark()
        for first in range(0, document.version.tokens, size):
            self._look_up()
            (entries,) = self._again(self._read, [document], first, first + size)
            if entries is None:
                self._report.entries -= self._shards.back_to(mark)
                return []
            self._add(entries)
        return [document]

    def _add(self, entries: Entries) -> None:
        entries.check(self._spec)
        self._shards.add(entries)
        self._report.entries += len(entries)

    def _read(
        self, group: list[DocumentRecord], first: int = 0, last: int = MAX_ID
    ) -> list[Entries | None]:
        """Read documents at positions first..last - 1, in order; None for one that changed."""
        dimension = self._spec.dimension
        numbers = np.array([document.version.number for document in group], np.int64)
        size = max(1, _BATCH // (4 * dimension))
        read = [Entries(np.empty((0, dimension), np.float32), *[numbers[:0]] * 3)]
        for batch in self._store.backend.scan(with_keys=True, documents=numbers, batch_size=size):
            read.append(batch[(batch.positions >= first) & (batch.positions < last)])
        entries = Entries.concatenate(read)
        entries = entries[np.lexsort((entries.positions, entries.documents))]
        return [_of(document.version, entries, first, last) for document in group]

    def _finish(self, documents: list[DocumentRecord]) -> None:
        """Write all but the entries, and last of all what makes the folder a bundle."""
        records = self._again(_records, self._store)
        files = [
            *self._shards.close(),
            _write_documents(self._folder / "documents.parquet", documents),
            _write_records(self._folder / "records.parquet", records),
        ]
        listing = Listing(
            name=self._store.location.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            version=version("knnlm-store"),
            manifest=json.loads(records["manifest"]),
            dimension=self._spec.dimension,
            storage=self._spec.storage,
            documents=len(documents),
            entries=sum(document.version.tokens for document in documents),
            files=tuple(files),
        )
        with (self._folder / NAME).open("xb") as file:
            file.write(listing.encode())
            os.fsync(file.fileno())
        self._report.bytes = sum(file.bytes for file in files)


def _of(version: Version, entries: Entries, first: int, last: int) -> Entries | None:
    """Take a version's entries at first..last - 1 out of sorted ones; None if some are missing."""
    start = int(np.searchsorted(entries.documents, version.number, "left"))
    end = int(np.searchsorted(entries.documents, version.number, "right"))
    expected = np.arange(first, min(last, version.tokens), dtype=np.int64)
    found = entries[start:end]
    return found if np.array_equal(found.positions, expected) else None


def _records(store: Datastore) -> dict[str, bytes]:
    """Read what a datastore says of itself, but for its documents and what was done to it."""
    found = store.backend.scan_records("")
    return {name: value for name, value in found if not name.startswith(BOOKKEEPING)}


def _write_documents(path: Path, documents: list[DocumentRecord]) -> BundleFile:
    file = TableFile(path, tables.documents_schema())
    for start in range(0, len(documents), _DOCUMENTS):
        part = [replace(document, stale=()) for document in documents[start : start + _DOCUMENTS]]
        columns = {
            "id": [document.id for document in part],
            "number": [document.version.number for document in part],
            "tokens": [document.version.tokens for document in part],
            "record": [document.encode().decode() for document in part],
        }
        file.write(columns)
    return file.close("documents")


def _write_records(path: Path, records: Mapping[str, bytes]) -> BundleFile:
    file = TableFile(path, tables.records_schema())
    file.write({"name": list(records), "value": list(records.values())})
    return file.close("records")
