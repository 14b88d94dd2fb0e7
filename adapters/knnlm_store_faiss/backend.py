"""The FAISS adapter's face to the core."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Self

import faiss
import numpy as np

from knnlm_store.backend import Compactable, Indexed, VectorBackend
from knnlm_store.errors import StoreCorrupt
from knnlm_store.values import (
    DocumentFilter,
    Entries,
    Float32,
    Freshness,
    Int64,
    Location,
    Neighbours,
    Spec,
)
from knnlm_store_faiss import compaction, folder, indexcache
from knnlm_store_faiss.datafiles import STORAGES, TOKEN, Codec, DataFile
from knnlm_store_faiss.failures import mapped
from knnlm_store_faiss.ivf import IvfIndex, Plan
from knnlm_store_faiss.ledger import Ledger, State
from knnlm_store_faiss.opened import Opened
from knnlm_store_faiss.searcher import trained
from knnlm_store_faiss.segments import runs
from knnlm_store_faiss.snapshot import Snapshot

RETRAIN_AT = 4
"""An index is trained again once it holds this many times the entries it was trained on."""


class FaissBackend(VectorBackend, Indexed, Compactable):
    """A datastore in a folder of its own: SQLite, files of keys and tokens, a FAISS index.

    Every upsert, delete and change of records is one durable commit. Any number of processes
    may search, and write in turn; each search sees all commits before it.
    """

    storages = STORAGES
    default_root: ClassVar[str] = "stores"
    exact_rows: ClassVar[int] = 65536
    """Up to this many entries a search compares every key."""
    busy_timeout: ClassVar[float] = 60.0
    """Seconds to wait for another process' write."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._folder = folder.folder_of(location)
        self._lock = threading.Lock()
        self._open: Opened | None = None

    # -- place ---------------------------------------------------------------------------------

    @classmethod
    def connect(cls, location: Location) -> Self:
        """Bind to the folder ROOT/NAME; nothing is opened yet."""
        return cls(location)

    @classmethod
    def names(cls, location: Location) -> list[str]:
        """Names of the folders in the root that hold a datastore."""
        root = Path(location.root or ".")
        with mapped(root):
            return folder.names(root)

    def create(self, spec: Spec, records: Mapping[str, bytes]) -> None:
        """Make the datastore in an absent or empty folder."""
        self.check_spec(spec)
        with mapped(self._folder):
            folder.create(self._folder, spec, records)

    def spec(self) -> Spec:
        """What the datastore was created as."""
        with self._opened() as store:
            return store.spec

    def drop(self) -> None:
        """Remove the datastore, damaged or not; foreign files in its folder stay."""
        with mapped(self._folder):
            folder.identity(self._folder)
        with suppress(StoreCorrupt), self._writing():
            pass  # a write that is under way is let through
        with mapped(self._folder):
            folder.drop(self._folder)
        self.close()

    # -- entries -------------------------------------------------------------------------------

    def count(self, documents: Sequence[int] | Int64 | None = None) -> int:
        """Count the entries, of these document numbers only if given."""
        with self._opened() as store:
            snapshot = store.snapshot()
        if documents is None:
            return snapshot.live_count
        return snapshot.passing(DocumentFilter.keeping(documents))[1]

    def _upsert(self, entries: Entries) -> None:
        with self._opened() as store:
            entries, segments = runs(entries)
            keys = Codec(store.spec).encode(entries.keys)
            with store.writing() as (ledger, state):
                DataFile.keys(self._folder, state.generation, store.spec).append(state.rows, keys)
                DataFile.tokens(self._folder, state.generation).append(
                    state.rows, entries.tokens.astype(TOKEN)
                )
                first = segments.documents + segments.positions
                last = first + segments.counts - 1
                for span in zip(first.tolist(), last.tolist(), strict=True):
                    ledger.remove_ids(*span)
                ledger.add_segments(segments.shifted(state.rows))
                ledger.set_rows(state.generation, state.rows + len(entries))

    def _delete(self, documents: Int64) -> None:
        with self._writing() as (ledger, _):
            ledger.remove_documents(documents)

    def _search(
        self,
        queries: Float32,
        k: int,
        within: DocumentFilter | None,
        freshness: Freshness,
        with_keys: bool,
        timeout: float | None,
    ) -> Neighbours:
        with self._opened() as store:
            with store.lock:
                snapshot = store.snapshot()
                distances, rows = store.searcher.search(snapshot, queries, k, within)
            return _neighbours(snapshot, distances, rows, with_keys=with_keys)

    def _scan(self, with_keys: bool, documents: Int64 | None, batch_size: int) -> Iterator[Entries]:
        with self._opened() as store:
            snapshot = store.snapshot()
        return snapshot.scan(documents, with_keys=with_keys, size=batch_size)

    # -- records -------------------------------------------------------------------------------

    def put_records(self, records: Mapping[str, bytes]) -> None:
        """Write records, all in one commit."""
        with self._writing() as (ledger, _):
            ledger.put_records(records)

    def get_records(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read those of the named records that exist."""
        with self._opened() as store, store.reading() as ledger:
            return ledger.get_records(names)

    def delete_records(self, names: Sequence[str]) -> None:
        """Remove records, all in one commit."""
        with self._writing() as (ledger, _):
            ledger.delete_records(names)

    def scan_records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the records whose name starts with `prefix`, by name."""
        after: str | None = None
        while True:
            with self._opened() as store, store.reading() as ledger:
                page = ledger.page_of_records(prefix, after)
            if not page:
                return
            yield from page
            after = page[-1][0]

    # -- index ---------------------------------------------------------------------------------

    def build_index(self) -> str | None:
        """Build, extend or retrain the index if the number of entries asks for it."""
        with self._opened() as store:
            with store.lock:
                snapshot = store.snapshot()
                if snapshot.live_count <= self.exact_rows:
                    return None
                index = store.searcher.index(snapshot)
            if index is None or snapshot.live_count > RETRAIN_AT * index.trained_on:
                return self._build(store, snapshot)
            if snapshot.state.indexed == snapshot.state.rows:
                return None
            self._save(store, snapshot, index)
            return f"extended {index.name} to {snapshot.live_count:,} entries"

    def describe_index(self) -> str:
        """`exact`, or the index by FAISS' name for it."""
        with self._opened() as store, store.lock:
            snapshot = store.snapshot()
            if snapshot.live_count <= self.exact_rows:
                return "exact"
            index = store.searcher.index(snapshot)
            return "exact (no index built yet)" if index is None else index.name

    def compact(self) -> None:
        """Drop what was deleted from disk, then build the index again if there was to be one."""
        with self._opened() as store:
            compaction.compact(store)
        self.build_index()

    def _build(self, store: Opened, snapshot: Snapshot) -> str:
        """Train and save an index; searches go on meanwhile."""
        Plan.of(snapshot.live_count, store.spec).check()
        began = time.monotonic()
        index = trained(snapshot)
        with store.lock:
            store.searcher.adopt(index, snapshot.state.generation)
        self._save(store, snapshot, index)
        seconds = time.monotonic() - began
        return (
            f"built {index.name} over {snapshot.live_count:,} entries in {seconds:.1f} s "
            "(recall not measured)"
        )

    def _save(self, store: Opened, snapshot: Snapshot, index: IvfIndex) -> None:
        """Save the index, unless a compaction has overtaken it."""
        generation = snapshot.state.generation
        with store.lock:
            packed, rows = indexcache.pack(generation, index), index.rows
        with store.writing() as (ledger, state):
            if state.generation == generation:
                indexcache.save(self._folder, generation, packed)
                ledger.set_indexed(rows)

    # -- housekeeping --------------------------------------------------------------------------

    def versions(self) -> dict[str, str]:
        """FAISS' version."""
        return {"faiss": faiss.__version__}

    @classmethod
    def bytes_per_entry(cls, spec: Spec) -> int:
        """Bytes of a key as stored, of a token, and of the index' note of its list."""
        return Codec(spec).dtype.itemsize + TOKEN.itemsize + 2

    def size(self) -> int | None:
        """Bytes of the folder's files; None if there is no datastore."""
        if not self.exists():
            return None
        with mapped(self._folder):
            return sum(path.stat().st_size for path in self._folder.iterdir() if path.is_file())

    def close(self) -> None:
        """Release connections and files."""
        with self._lock:
            if self._open is not None:
                self._open.close()
                self._open = None

    @contextmanager
    def _opened(self) -> Iterator[Opened]:
        """Hold the datastore that lies in the folder now; map errors."""
        with mapped(self._folder):
            with self._lock:
                now = folder.identity(self._folder)
                if self._open is None or self._open.identity != now:
                    if self._open is not None:
                        self._open.close()
                    self._open = Opened(
                        self._folder, busy_timeout=self.busy_timeout, exact_rows=self.exact_rows
                    )
                store = self._open
            yield store

    @contextmanager
    def _writing(self) -> Iterator[tuple[Ledger, State]]:
        with self._opened() as store, store.writing() as held:
            yield held


def _neighbours(
    snapshot: Snapshot, distances: Float32, rows: Int64, *, with_keys: bool
) -> Neighbours:
    """Say what lies in rows int64 `[q, m]`; -1 is no row."""
    missing = rows < 0
    if missing.all():
        width = snapshot.state.spec.dimension if with_keys else None
        return Neighbours.none(len(rows), rows.shape[1], width)
    known = np.where(missing, rows.max(), rows)
    documents, positions = snapshot.segments.owners(known)
    return Neighbours(
        distances,
        np.where(missing, -1, snapshot.tokens(known)),
        np.where(missing, -1, documents),
        np.where(missing, -1, positions),
        np.where(missing[..., None], 0, snapshot.keys(known)) if with_keys else None,
    )
