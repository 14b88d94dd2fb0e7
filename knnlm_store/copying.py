"""From one datastore to another, of any backend: streamed, resumable, verified.

Stored keys are copied, so no model is needed. Documents go over in groups, each committed as an
ingest commits it: a copy that was killed goes on where it was, and a document that changed in
the source replaces its copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from knnlm_store import history, intents
from knnlm_store.backend import VectorBackend
from knnlm_store.calibration import forget_temperature
from knnlm_store.catalog import Catalog
from knnlm_store.datastore import Datastore
from knnlm_store.documents import Change, DocumentRecord
from knnlm_store.manifest import RECORDS
from knnlm_store.retry import build_index, retrying
from knnlm_store.values import Entries
from knnlm_store.verifying import verify
from knnlm_store.writer import DocumentWriter

_GROUP = 16 * 1024 * 1024  # bytes of keys that are read at once, unless a document is larger
_DOCUMENTS = 1000  # in a group, at most: some are empty
_BATCH = 4 * 1024 * 1024  # bytes of keys that a scan reads at once
BOOKKEEPING = ("document/", "intent/", history.PREFIX)
"""Beginnings of the names of records that belong to one datastore alone."""


@dataclass
class CopyReport:
    """What a copy did. `total` and `entries` count entries; `changed` names documents to redo.

    unfinished: changes in the source that were under way, or that a killed run had left.
    """

    copied: int = 0
    skipped: int = 0
    entries: int = 0
    total: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    verified: dict[str, int] = field(default_factory=dict)
    index: str | None = None
    unfinished: int = 0
    changed: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Give the report as one JSON-able object."""
        values = asdict(self)
        counts = {"copied": values.pop("copied"), "skipped": values.pop("skipped")}
        return {"documents": counts, **values}


def copy(
    source: Datastore,
    target: Datastore,
    *,
    progress: Callable[[CopyReport], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    seed: int = 0,
    called: str = "copy",
) -> CopyReport:
    """Copy the documents that `target` does not have in their present version.

    What `target` holds besides stays. called: what the target's history says of it. Raises
    StoreMismatch, with nothing written, if another model or key transform wrote `target`,
    StoreCorrupt if the copy cannot be verified, and what the backends raise once retries are used
    up.
    """
    target.require_keys(source.manifest)
    started, report, again = time.monotonic(), CopyReport(), retrying()
    catalog = again(Catalog, target.backend)
    again(catalog.recover)
    documents = again(lambda: sorted(source.documents(), key=lambda document: document.id))
    missing = [document for document in documents if not _is_there(document, catalog)]
    report.unfinished = again(lambda: sum(1 for _ in intents.scan(source.backend)))
    report.skipped = len(documents) - len(missing)
    report.total = sum(document.version.tokens for document in missing)
    if missing:
        again(forget_temperature, target)
    with DocumentWriter(target.backend, catalog) as writer:
        for group in groups(missing, source.manifest.key_dimension):
            if stop():
                report.interrupted = True
                break
            _copy_group(source.backend, writer, group, report)
            report.seconds = time.monotonic() - started
            progress(report)
    report.changed += sorted(writer.refused)
    if report.changed:
        again(lambda: Catalog(target.backend).recover())  # what was written of them goes
    if not report.interrupted:
        if len(catalog) == len(documents):
            again(_copy_records, source.backend, target.backend)
        report.index = build_index(target.backend)
        settled = [document for document in documents if document.id not in report.changed]
        report.verified = again(verify, source, target, settled, seed)
    report.seconds = time.monotonic() - started
    history.note(
        target.backend, called, report.seconds, copied=report.copied, entries=report.entries
    )
    return report


def _is_there(document: DocumentRecord, catalog: Catalog) -> bool:
    known = catalog.get(document.id)
    if known is None or known.metadata != document.metadata:
        return False
    return known.version.number == document.version.number


def groups(documents: list[DocumentRecord], dimension: int) -> Iterator[list[DocumentRecord]]:
    """Put documents together up to `_GROUP` bytes of keys, and `_DOCUMENTS`."""
    group: list[DocumentRecord] = []
    size = 0
    for document in documents:
        bytes_ = document.version.tokens * dimension * 4
        if group and (size + bytes_ > _GROUP or len(group) == _DOCUMENTS):
            yield group
            group, size = [], 0
        group.append(document)
        size += bytes_
    if group:
        yield group


def _copy_group(
    source: VectorBackend,
    writer: DocumentWriter,
    group: list[DocumentRecord],
    report: CopyReport,
) -> None:
    """Copy documents; those of which not all entries are there were changed meanwhile."""
    if len(group) == 1:
        _stream(source, writer, group[0], report)
        return
    read = list(_scan(source, group, report))
    numbers, counts = np.unique(np.concatenate([e.documents for e in read]), return_counts=True)
    found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    whole = [Change(d) for d in group if found.get(d.version.number, 0) == d.version.tokens]
    wanted = [change.document.version.number for change in whole]
    report.changed += sorted({d.id for d in group} - {change.id for change in whole})
    for change in whole:
        writer.begin(change)
    for entries in read:
        part = entries[np.isin(entries.documents, wanted)]
        if len(part):
            writer.put(part)
    for change in whole:
        writer.done(change)
    report.copied += len(whole)


def _stream(
    source: VectorBackend, writer: DocumentWriter, document: DocumentRecord, report: CopyReport
) -> None:
    """Copy one document, which may be larger than memory; one that changed is left undone."""
    change = Change(document)
    writer.begin(change)
    found = 0
    for entries in _scan(source, [document], report):
        found += len(entries)
        if len(entries):
            writer.put(entries)
    if found == document.version.tokens:
        writer.done(change)
        report.copied += 1
    else:
        report.changed.append(document.id)


def _scan(
    source: VectorBackend, documents: list[DocumentRecord], report: CopyReport
) -> Iterator[Entries]:
    """Read the entries of documents, with at least one batch, which may be empty."""
    dimension = source.spec().dimension
    size = max(1, _BATCH // (4 * dimension))
    numbers = np.array([document.version.number for document in documents], np.int64)
    yield Entries(np.empty((0, dimension), np.float32), *[numbers[:0]] * 3)
    for entries in source.scan(with_keys=True, documents=numbers, batch_size=size):
        report.entries += len(entries)
        yield entries


def _copy_records(source: VectorBackend, target: VectorBackend) -> None:
    """Bring over what else a datastore of the same documents says of itself."""
    others = {
        name: value
        for name, value in source.scan_records("")
        if name not in RECORDS and not name.startswith(BOOKKEEPING)
    }
    if others:
        target.put_records(others)
