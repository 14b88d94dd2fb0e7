"""The exact backend in this process's memory: default of tests, oracle of the contract suite."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import numpy as np

from knnlm_store import exact
from knnlm_store.backend import VectorBackend
from knnlm_store.errors import StoreExists, StoreNotFound
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


class MemoryBackend(VectorBackend):
    """A datastore that lives and dies with the object; `memory:` always gives a new one."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._lock = threading.Lock()
        self._spec: Spec | None = None
        self._entries = _no_entries(0)
        self._norms = np.empty(0, np.float32)
        self._records: dict[str, bytes] = {}

    @classmethod
    def connect(cls, location: Location) -> Self:
        """Give a new, absent datastore."""
        return cls(location)

    @classmethod
    def names(cls, location: Location) -> list[str]:
        """Nothing: no object knows of another."""
        return []

    def create(self, spec: Spec, records: Mapping[str, bytes]) -> None:
        """Make the datastore."""
        self.check_spec(spec)
        with self._lock:
            if self._spec is not None:
                raise StoreExists(f"The datastore {self._location} exists already.")
            self._spec, self._records = spec, dict(records)
            self._entries = _no_entries(spec.dimension)
            self._norms = np.empty(0, np.float32)

    def spec(self) -> Spec:
        """What the datastore was created as."""
        if self._spec is None:
            raise StoreNotFound(f"There is no datastore at {self._location}.")
        return self._spec

    def drop(self) -> None:
        """Forget everything."""
        self.spec()
        with self._lock:
            self._spec = None

    def _upsert(self, entries: Entries) -> None:
        with self._lock:
            kept = self._entries[~np.isin(self._entries.ids, entries.ids)]
            self._replace(Entries.concatenate([kept, entries]))

    def _delete(self, documents: Int64) -> None:
        with self._lock:
            self._replace(self._entries[~np.isin(self._entries.documents, documents)])

    def _replace(self, entries: Entries) -> None:
        self._entries, self._norms = entries, exact.squared_norms(entries.keys)

    def _search(
        self,
        queries: Float32,
        k: int,
        within: DocumentFilter | None,
        freshness: Freshness,
        with_keys: bool,
        timeout: float | None,
    ) -> Neighbours:
        with self._lock:
            entries, norms = self._entries, self._norms
        allowed = None if within is None else within.mask(entries.documents)
        distances, rows = exact.nearest(queries, [(0, entries.keys, norms)], k, allowed)
        if not len(entries):
            return Neighbours.none(len(queries), k, queries.shape[1] if with_keys else None)
        missing = rows < 0
        return Neighbours(
            distances,
            np.where(missing, -1, entries.tokens[rows]),
            np.where(missing, -1, entries.documents[rows]),
            np.where(missing, -1, entries.positions[rows]),
            np.where(missing[:, :, None], 0, entries.keys[rows]) if with_keys else None,
        )

    def _scan(self, with_keys: bool, documents: Int64 | None, batch_size: int) -> Iterator[Entries]:
        with self._lock:
            entries = self._entries
        if documents is not None:
            entries = entries[np.isin(entries.documents, documents)]
        for start in range(0, len(entries), batch_size):
            batch = entries[start : start + batch_size]
            keys = batch.keys if with_keys else batch.keys[:, :0]
            yield Entries(keys, batch.tokens, batch.documents, batch.positions)

    def put_records(self, records: Mapping[str, bytes]) -> None:
        """Write records."""
        self.spec()
        with self._lock:
            self._records.update(records)

    def get_records(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read records."""
        self.spec()
        return {name: self._records[name] for name in names if name in self._records}

    def delete_records(self, names: Sequence[str]) -> None:
        """Remove records."""
        self.spec()
        with self._lock:
            for name in names:
                self._records.pop(name, None)

    def scan_records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield records by name."""
        self.spec()
        with self._lock:
            found = sorted(r for r in self._records.items() if r[0].startswith(prefix))
        yield from found

    def size(self) -> int | None:
        """Bytes of the arrays."""
        e = self._entries
        return e.keys.nbytes + e.tokens.nbytes + e.documents.nbytes + e.positions.nbytes


def _no_entries(dimension: int) -> Entries:
    blank = np.empty(0, np.int64)
    return Entries(np.empty((0, dimension), np.float32), blank, blank, blank)
