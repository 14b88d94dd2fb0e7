"""Whether catalog and entries agree, and what can be done where they do not.

Documents may come and go meanwhile: what looks wrong after one scan is looked at again, alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from knnlm_store import history, intents
from knnlm_store.backend import VectorBackend
from knnlm_store.calibration import forget_temperature
from knnlm_store.catalog import Catalog
from knnlm_store.datastore import Datastore
from knnlm_store.documents import DocumentRecord, read, scan_all
from knnlm_store.retry import retrying
from knnlm_store.values import Entries

Kind = Literal["damaged", "orphan", "unfinished"]
_GROUP = 256  # version numbers of one delete


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    damaged: a document whose entries are not one for each of its tokens. orphan: entries of a
    version that no document has (document None). unfinished: what a killed run left, which any
    run that writes mends. expected, found: entries. undone: mending takes back a version that was
    being written.
    """

    kind: Kind
    document: str | None
    number: int
    expected: int
    found: int
    undone: bool = False


@dataclass
class Integrity:
    """What was looked at, what was found, and what of it was mended.

    again, undone: ids of documents to be ingested again, as they were taken out because they were
    damaged, or as a killed run had not written them in full.
    """

    documents: int = 0
    entries: int = 0
    findings: list[Finding] = field(default_factory=list)
    mended: int = 0
    again: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Give the report as one JSON-able object."""
        return asdict(self)


def check(
    store: Datastore,
    watch: Callable[[Iterable[Entries]], Iterable[Entries]] = lambda batches: batches,
) -> Integrity:
    """Compare every entry with the catalog; changes nothing. watch: passes the scan through."""
    report = Integrity()
    counts, firsts, lasts = _census(watch(store.backend.scan()))
    report.entries = counts.total()
    known: set[int] = set()
    leaving: list[DocumentRecord] = []
    for record in scan_all(store.backend):
        known.update((record.version.number, *record.stale))
        if record.leaving:
            leaving.append(record)
        if record.forgotten:
            continue
        report.documents += 1
        number, tokens = record.version.number, record.version.tokens
        whole = not tokens or (firsts.get(number), lasts.get(number)) == (0, tokens - 1)
        if (counts[number] != tokens or not whole) and _is_damaged(store, record, counts):
            report.findings.append(_finding("damaged", record, counts))
    report.findings += _unfinished(store.backend, leaving, counts, known)
    report.findings += _orphans(store.backend, counts, known)
    return report


def mend(store: Datastore, report: Integrity) -> None:
    """Undo what killed runs left, remove orphans, and take damaged documents out.

    Looks again afterwards: `mended` is what is no longer found.
    """
    started, backend, again = time.monotonic(), store.backend, retrying()
    catalog: Catalog = again(Catalog, backend)
    again(catalog.recover)
    orphans = [finding.number for finding in report.findings if finding.kind == "orphan"]
    for start in range(0, len(orphans), _GROUP):
        again(_remove_orphans, backend, orphans[start : start + _GROUP])
    damaged = {f.document: f.number for f in report.findings if f.kind == "damaged" and f.document}
    kept = again(catalog.forget, damaged, versions=damaged)
    report.again = sorted(damaged.keys() - kept)
    if report.findings:
        again(forget_temperature, store)
    left = {(f.kind, f.document, f.number) for f in check(store).findings}
    gone = {f for f in report.findings if (f.kind, f.document, f.number) not in left}
    report.mended = len(gone)
    report.undone = sorted({f.document for f in gone if f.undone and f.document})
    history.note(backend, "mend", time.monotonic() - started, mended=report.mended)


def _remove_orphans(backend: VectorBackend, numbers: list[int]) -> None:
    """Remove entries of versions that still nobody knows of: writers first, then the catalog."""
    suspects = set(numbers) - {intent.number for intent in intents.scan(backend)}
    for record in scan_all(backend):
        suspects -= {record.version.number, *record.stale}
    backend.delete(sorted(suspects))
    backend.flush()


def _unfinished(
    backend: VectorBackend,
    leaving: list[DocumentRecord],
    counts: Counter[int],
    known: set[int],
) -> Iterator[Finding]:
    """What killed runs left: documents that still are to go, with nobody at it, and intents."""
    claims = list(intents.scan(backend))
    busy = {intent.document for intent in claims if not intent.is_abandoned}
    now = read(backend, (record.id for record in leaving))
    for record in leaving:
        if record.id not in busy and now.get(record.id) == record:
            yield _finding("unfinished", record, counts)
    for intent in claims:
        if intent.is_abandoned:
            undone = intent.writes and intent.number not in known
            left = counts[intent.number] if undone else 0
            yield Finding("unfinished", intent.document, intent.number, 0, left, undone)


def _census(batches: Iterable[Entries]) -> tuple[Counter[int], dict[int, int], dict[int, int]]:
    """Entries, first and last position of each version number."""
    counts: Counter[int] = Counter()
    firsts: dict[int, int] = {}
    lasts: dict[int, int] = {}
    for entries in batches:
        numbers, inverse = np.unique(entries.documents, return_inverse=True)
        low = np.full(len(numbers), np.iinfo(np.int64).max)
        high = np.full(len(numbers), -1)
        np.minimum.at(low, inverse, entries.positions)
        np.maximum.at(high, inverse, entries.positions)
        counted = np.bincount(inverse, minlength=len(numbers))
        columns = (numbers.tolist(), counted.tolist(), low.tolist(), high.tolist())
        for number, count, first, last in zip(*columns, strict=True):
            counts[number] += count
            firsts[number] = min(first, firsts.get(number, first))
            lasts[number] = max(last, lasts.get(number, last))
    return counts, firsts, lasts


def _finding(kind: Kind, record: DocumentRecord, counts: Counter[int]) -> Finding:
    version = record.version
    return Finding(kind, record.id, version.number, version.tokens, counts[version.number])


def _is_damaged(store: Datastore, record: DocumentRecord, counts: Counter[int]) -> bool:
    """Look again at a document alone, as it is now."""
    number = record.version.number
    now, firsts, lasts = _census(store.backend.scan(documents=[number]))
    there = read(store.backend, [record.id]).get(record.id)
    if there is None or there.forgotten or there.version.number != number:
        return False
    counts[number] = now[number]
    tokens = record.version.tokens
    if not tokens:
        return now[number] > 0
    return now[number] != tokens or (firsts[number], lasts[number]) != (0, tokens - 1)


def _orphans(backend: VectorBackend, counts: Counter[int], known: set[int]) -> list[Finding]:
    """Entries of versions that neither a document nor a writer knows of, now that all was read."""
    suspects = counts.keys() - known - {intent.number for intent in intents.scan(backend)}
    if suspects:  # committed since the catalog was read?
        for record in scan_all(backend):
            suspects -= {record.version.number, *record.stale}
    found = {number: backend.count([number]) for number in sorted(suspects)}
    return [Finding("orphan", None, number, 0, count) for number, count in found.items() if count]
