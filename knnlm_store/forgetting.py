"""Documents that are to be forgotten: which they are, their going, and the proof of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from knnlm_store import calibrated, history, intents
from knnlm_store.backend import Compactable, Indexed, VectorBackend
from knnlm_store.calibration import forget_temperature
from knnlm_store.catalog import Catalog
from knnlm_store.datastore import Datastore
from knnlm_store.documents import DocumentRecord, read, scan_all
from knnlm_store.errors import StoreError, UsageError
from knnlm_store.retry import retrying
from knnlm_store.values import DocumentFilter, Float32, Int64
from knnlm_store.wording import listed

_AT_ONCE = 256  # documents that are claimed and removed together
_SAMPLED, _KEYS, _K = 64, 8, 16  # documents whose keys are searched for, keys of each, neighbours


@dataclass(frozen=True, slots=True)
class Proof:
    """What is left of forgotten documents: counts, all 0 if nothing is.

    by_id: entries whose id is one of theirs, among all entries of the datastore. by_filter: what a
    count by document gives. by_search: neighbours that are theirs, in searches for `keys` of their
    own keys, with and without a filter. records: of theirs in the catalog. Versions that a killed
    run left are looked for as well.
    """

    by_id: int
    by_filter: int
    by_search: int
    records: int
    keys: int

    @property
    def holds(self) -> bool:
        """Whether nothing is left."""
        return not (self.by_id or self.by_filter or self.by_search or self.records)


@dataclass
class ForgetReport:
    """What a run forgot. refused: ids of documents that another process is writing, or wrote."""

    documents: list[str] = field(default_factory=list)
    entries: int = 0
    refused: list[str] = field(default_factory=list)
    seconds: float = 0.0
    proof: Proof | None = None

    def json(self) -> dict[str, Any]:
        """Give the report as one JSON-able object."""
        proof = None if self.proof is None else asdict(self.proof) | {"holds": self.proof.holds}
        return asdict(self) | {"proof": proof}


def choose(
    store: Datastore, ids: Iterable[str] = (), where: Mapping[str, str] | None = None
) -> list[str]:
    """Find the documents that are meant, by id, or by `where`; sorted ids.

    where: pairs that must all fit: `source`, or a key of the metadata, with its value as text. A
    document that a killed run left half written, or half forgotten, counts as well. Raises
    UsageError where nothing is named, StoreError for an id that is not there, or where no document
    fits.
    """
    ids = set(ids)
    if bool(ids) == bool(where):
        raise UsageError(
            "Name documents, or say which by --where, but not both.",
            hint="For example: knnlm-store forget law/a.txt --store STORE",
        )
    documents = {document.id: document for document in scan_all(store.backend)}
    if where:
        chosen = sorted(d.id for d in documents.values() if fits(d, where))
        if not chosen:
            said = ", ".join(f"{key}={value}" for key, value in where.items())
            raise StoreError(
                f"No document in {store.location} has {said}.",
                hint=f"{why_none_fits(documents.values(), where)} "
                f"See what there is: knnlm-store documents {store.location}",
            )
        return chosen
    for unknown in sorted(
        ids - documents.keys() - {i.document for i in intents.scan(store.backend)}
    ):
        raise not_there([store], unknown, documents)
    return sorted(ids)


def fits(document: DocumentRecord, where: Mapping[str, str]) -> bool:
    """Whether a document's source and metadata are as `where` says."""
    known = _known(document)
    return all(known.get(key) == value for key, value in where.items())


def why_none_fits(documents: Iterable[DocumentRecord], where: Mapping[str, str]) -> str:
    """Say what keys there are, or, if all of them are there, what values; in one sentence."""
    values: dict[str, set[str]] = {"source": set()}
    for document in documents:
        for key, value in _known(document).items():
            values.setdefault(key, set()).add(value)
    for key, value in where.items():
        if key not in values:
            return f"There is no metadata key {key!r}; there are: {listed(values)}."
        if value not in values[key]:
            return f"The key {key!r} is there, with the values: {listed(values[key])}."
    return "Each of these is there, but not in one document."


def _known(document: DocumentRecord) -> dict[str, str]:
    """What can be asked for of a document."""
    return {key: str(value) for key, value in document.metadata.items()} | {
        "source": document.source
    }


def not_there(stores: Sequence[Datastore], unknown: str, documents: Iterable[str]) -> StoreError:
    """Make the error for a document that none of the datastores holds; documents: that they do."""
    near = get_close_matches(unknown, list(documents), n=3, cutoff=0.6)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    places = " + ".join(str(store.location) for store in stores)
    return StoreError(
        f"There is no document {unknown!r} in {places}.",
        hint=f"{meant}See what there is: knnlm-store documents {stores[0].location}",
    )


def forget(
    store: Datastore,
    documents: Iterable[str],
    *,
    versions: Mapping[str, int] | None = None,
    verify: bool = False,
    patience: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> ForgetReport:
    """Remove documents and all their entries; what it returned from, no LATEST search finds.

    Killed at any instant, the next run of anything that writes finishes what was begun. versions:
    see Catalog.forget. verify: prove it; costs a scan of all entries. patience: seconds to wait
    for another writer of one of them. Once `stop` gives True no more are begun. Raises what the
    backend raises once retries are used up.
    """
    started, report, again = time.monotonic(), ForgetReport(), retrying()
    wanted = sorted(set(documents))
    catalog: Catalog = again(Catalog, store.backend)
    traces = again(_traces, store.backend, wanted)
    keys = again(_keys, store, list(traces.values())) if verify else None
    again(forget_temperature, store)
    for start in range(0, len(wanted), _AT_ONCE):
        if stop():
            break
        group = wanted[start : start + _AT_ONCE]
        refused = again(catalog.forget, group, patience, versions)
        report.refused += sorted(refused)
        report.documents += [document for document in group if document not in refused]
    gone = [traces[document] for document in report.documents if document in traces]
    report.entries = sum(trace.tokens for trace in gone)
    again(forget_temperature, store)  # a reader may have taken it meanwhile
    report.seconds = time.monotonic() - started
    history.note(
        store.backend,
        "forget",
        report.seconds,
        forgotten=len(report.documents),
        entries=report.entries,
    )
    if keys is not None:
        report.proof = again(_prove, store, gone, keys)
    return report


@dataclass(frozen=True, slots=True)
class _Trace:
    """What a document has in the datastore: numbers of all its versions, ids of the present one."""

    document: str
    numbers: tuple[int, ...]
    tokens: int = 0

    @property
    def span(self) -> tuple[int, int]:
        return self.numbers[0], self.numbers[0] + self.tokens


def _traces(backend: VectorBackend, documents: Iterable[str]) -> dict[str, _Trace]:
    """Find the versions of documents: present, stale, and half written; by id."""
    wanted = set(documents)
    known = read(backend, wanted)
    written: dict[str, set[int]] = {}
    for intent in intents.scan(backend):
        if intent.writes and intent.document in wanted:
            written.setdefault(intent.document, set()).add(intent.number)
    traces = {}
    for document in wanted & (known.keys() | written.keys()):
        record = known.get(document)
        version = (record.version.number, *record.stale) if record else ()
        rest = sorted(written.get(document, set()) - set(version))
        tokens = record.version.tokens if record else 0
        traces[document] = _Trace(document, (*version, *rest), tokens)
    return traces


def _keys(store: Datastore, traces: Sequence[_Trace]) -> tuple[Float32, Int64]:
    """Some keys of some of the documents, float32 `[n, d]`, and the numbers they are of."""
    step = max(1, len(traces) // _SAMPLED)
    found = [np.empty((0, store.manifest.key_dimension), np.float32)]
    numbers = [n for trace in traces[::step][:_SAMPLED] for n in trace.numbers]
    for number in numbers:
        for entries in store.backend.scan(with_keys=True, documents=[number], batch_size=1024):
            found.append(entries.keys[:: max(1, len(entries) // _KEYS)][:_KEYS])
            break
    return np.concatenate(found), np.array(numbers, np.int64)


def _prove(store: Datastore, gone: Sequence[_Trace], sample: tuple[Float32, Int64]) -> Proof:
    """Look for what is left, in every way there is to find it."""
    backend, (keys, sampled) = store.backend, sample
    numbers = np.array(sorted(n for trace in gone for n in trace.numbers), np.int64)
    if not len(numbers):
        return Proof(0, 0, 0, 0, 0)
    firsts, ends = np.array(sorted(trace.span for trace in gone), np.int64).T
    by_id = by_filter = by_search = 0
    for entries in backend.scan():
        place = np.searchsorted(firsts, entries.ids, side="right") - 1  # -1 before the first
        inside = (place >= 0) & (entries.ids < ends[place])
        by_id += int((inside | np.isin(entries.documents, numbers)).sum())
    for start in range(0, len(numbers), _AT_ONCE):
        by_filter += backend.count(numbers[start : start + _AT_ONCE])
    for within in (None, DocumentFilter.keeping(sampled)):
        found = backend.search(keys, _K, within=within)
        by_search += int(np.isin(found.documents, numbers).sum())
    left = len(read(backend, (trace.document for trace in gone)))
    return Proof(by_id, by_filter, by_search, left, len(keys))


def remains(store: Datastore) -> list[str]:
    """Say what may still hold something of documents that were forgotten, a sentence each."""
    backend, where = store.backend, store.location
    told = ["Backups, snapshots, exports and copies made before still hold what was forgotten."]
    if isinstance(backend, Compactable):
        told.append(f"Its bytes leave the disk with: knnlm-store compact {where}")
    elif backend.remote:
        told.append("The server takes deleted entries off its disks by itself, in its own time.")
    if isinstance(backend, Indexed) and not backend.describe_index().startswith("exact"):
        told.append(
            "The index was shaped by it as well"
            + ("; compact builds it anew." if isinstance(backend, Compactable) else ".")
        )
    if backend.get_records([calibrated.RECORD]):
        told.append(
            "The calibration was fitted while it was there; to fit it anew: "
            f"knnlm-store tune {where} TEXT"
        )
    return told
