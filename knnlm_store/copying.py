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

from knnlm_store.backend import Indexed, VectorBackend
from knnlm_store.calibration import forget_temperature
from knnlm_store.catalog import Catalog, Change, DocumentRecord
from knnlm_store.datastore import Datastore
from knnlm_store.errors import StoreCorrupt
from knnlm_store.manifest import RECORDS
from knnlm_store.values import Entries, Float32
from knnlm_store.writer import DocumentWriter

_GROUP = 16 * 1024 * 1024  # bytes of keys that are read at once, unless a document is larger
_SAMPLE = 256
_BOOKKEEPING = ("document/", "intent/")
# Largest error of a value that a storage may bring, in parts of the key's largest value.
ROUNDING = {"float32": 1e-6, "float16": 1e-3, "int8": 1e-2}


@dataclass
class CopyReport:
    """What a copy did. `total` and `entries` count entries; `changed` names documents to redo."""

    copied: int = 0
    skipped: int = 0
    entries: int = 0
    total: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    verified: dict[str, int] = field(default_factory=dict)
    index: str | None = None
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
) -> CopyReport:
    """Copy the documents that `target` does not have in their present version.

    What `target` holds besides stays. Raises StoreCorrupt if the copy cannot be verified, and
    what the backends raise once retries are used up.
    """
    started, report = time.monotonic(), CopyReport()
    catalog = Catalog(target.backend)
    catalog.recover()
    documents = sorted(source.documents(), key=lambda document: document.id)
    missing = [document for document in documents if not _is_there(document, catalog)]
    report.skipped = len(documents) - len(missing)
    report.total = sum(document.version.tokens for document in missing)
    if missing:
        forget_temperature(target)
    with DocumentWriter(target.backend, catalog) as writer:
        for group in _groups(missing, source.manifest.dimension):
            if stop():
                report.interrupted = True
                break
            _copy_group(source.backend, writer, group, report)
            report.seconds = time.monotonic() - started
            progress(report)
    report.changed += sorted(writer.refused)
    if not report.interrupted:
        if len(catalog) == len(documents):
            _copy_records(source.backend, target.backend)
        if isinstance(target.backend, Indexed):
            report.index = target.backend.build_index()
        settled = [document for document in documents if document.id not in report.changed]
        report.verified = verify(source, target, settled, seed)
    report.seconds = time.monotonic() - started
    return report


def _is_there(document: DocumentRecord, catalog: Catalog) -> bool:
    known = catalog.get(document.id)
    if known is None or known.metadata != document.metadata:
        return False
    return known.version.number == document.version.number


def _groups(documents: list[DocumentRecord], dimension: int) -> Iterator[list[DocumentRecord]]:
    """Put documents together up to `_GROUP` bytes of keys."""
    group: list[DocumentRecord] = []
    size = 0
    for document in documents:
        bytes_ = document.version.tokens * dimension * 4
        if group and size + bytes_ > _GROUP:
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
    numbers = [document.version.number for document in group]
    read = list(source.scan(with_keys=True, documents=numbers))
    found = np.concatenate([entries.documents for entries in read]) if read else np.empty(0)
    whole = [d for d in group if int((found == d.version.number).sum()) == d.version.tokens]
    report.changed += [document.id for document in group if document not in whole]
    changes = [Change(document) for document in whole]
    for change in changes:
        writer.begin(change)
    for entries in read:
        wanted = entries[np.isin(entries.documents, [d.version.number for d in whole])]
        if len(wanted):
            writer.put(wanted)
            report.entries += len(wanted)
    for change in changes:
        writer.done(change)
    report.copied += len(whole)


def _stream(
    source: VectorBackend, writer: DocumentWriter, document: DocumentRecord, report: CopyReport
) -> None:
    """Copy one document, which may be larger than memory."""
    change = Change(document)
    writer.begin(change)
    for entries in source.scan(with_keys=True, documents=[document.version.number]):
        writer.put(entries)
        report.entries += len(entries)
    writer.done(change)
    report.copied += 1


def _copy_records(source: VectorBackend, target: VectorBackend) -> None:
    """Bring over what else a datastore of the same documents says of itself."""
    others = {
        name: value
        for name, value in source.scan_records("")
        if name not in RECORDS and not name.startswith(_BOOKKEEPING)
    }
    if others:
        target.put_records(others)


def verify(
    source: Datastore, target: Datastore, documents: list[DocumentRecord], seed: int = 0
) -> dict[str, int]:
    """Compare counts, and a sample of entries in full; gives how many of each were compared.

    Raises StoreCorrupt naming what differs.
    """
    expected = sum(document.version.tokens for document in documents)
    found = target.backend.count([document.version.number for document in documents])
    if found != expected:
        raise StoreCorrupt(
            f"{target.location} holds {found} of {expected} entries.",
            hint="Run the same command again.",
        )
    compared = 0
    random = np.random.default_rng(seed)
    order = random.permutation(len(documents))[: _SAMPLE // 8]
    for document in (documents[i] for i in order):
        compared += _compare_some(source, target, document)
    return {"entries": found, "sample": compared}


def _compare_some(source: Datastore, target: Datastore, document: DocumentRecord) -> int:
    number = document.version.number
    size = min(1024, max(8, document.version.tokens))
    ours = next(source.backend.scan(with_keys=True, documents=[number], batch_size=size), None)
    if ours is None:
        return 0
    rows = np.linspace(0, len(ours) - 1, min(8, len(ours))).astype(np.int64)
    ours = ours[rows]
    theirs = _same_entries(target.backend, number, ours)
    storages = {store.backend.spec().storage for store in (source, target)}
    tolerance = max(ROUNDING.get(storage, 1e-2) for storage in storages)
    same = (theirs.tokens == ours.tokens).all() and _near(theirs.keys, ours.keys, tolerance)
    if not same:
        raise StoreCorrupt(
            f"Entries of {document.id} differ between {source.location} and {target.location}.",
            hint=f"Remove the copy and copy again: knnlm-store rm {target.location}",
        )
    return len(ours)


def _same_entries(backend: VectorBackend, number: int, wanted: Entries) -> Entries:
    """Read the entries with the ids of `wanted`, in its order."""
    found: list[Entries] = []
    for entries in backend.scan(with_keys=True, documents=[number]):
        part = entries[np.isin(entries.ids, wanted.ids)]
        if len(part):
            found.append(part)
    everything = Entries.concatenate(found) if found else wanted[:0]
    order = np.argsort(everything.ids)
    everything = everything[order]
    if not np.array_equal(everything.ids, np.sort(wanted.ids)):
        raise StoreCorrupt(f"Entries of the document number {number} are missing from the copy.")
    return everything[np.argsort(np.argsort(wanted.ids))]


def _near(found: Float32, expected: Float32, tolerance: float) -> bool:
    largest = np.abs(expected).max(axis=1, keepdims=True)
    return bool((np.abs(found - expected) <= tolerance * largest + 1e-12).all())
