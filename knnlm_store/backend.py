"""The contract between the core and whatever holds the entries.

A backend object is one named datastore at one place. The public methods check and normalise what
crosses, once; an adapter implements the underscored ones, where shapes and dtypes are guaranteed.
Knows nothing of models, text or tokenizers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Self

import numpy as np

from knnlm_store.abilities import Aliased, Compactable, Indexed
from knnlm_store.errors import InvalidEntries, StoreCorrupt, StoreNotFound, UsageError
from knnlm_store.values import (
    DocumentFilter,
    Entries,
    Float32,
    Freshness,
    Int64,
    Location,
    Neighbours,
    Spec,
    check_dimension,
    check_vectors,
)

__all__ = [
    "Aliased",
    "Compactable",
    "DocumentFilter",
    "Entries",
    "Float32",
    "Freshness",
    "Indexed",
    "Int64",
    "Location",
    "Neighbours",
    "Spec",
    "VectorBackend",
]


class VectorBackend(ABC):
    """One named datastore: entries that can be searched, and records that describe them.

    Distances are squared L2 (float32, ascending). An entry's id is its document number plus its
    position. Records are small named byte strings (manifest, catalog); a backend keeps them
    beside the entries, so that whoever knows the location can open the datastore. Where there is
    no datastore, all but connect, names, create, exists, flush, size and close raise
    StoreNotFound. Threads may share an object.
    """

    storages: tuple[str, ...] = ("float32",)
    """Ways this backend can keep keys, the default first; an object may offer fewer."""
    options: ClassVar[Mapping[str, str]] = {}
    """Settings that `create` takes in Spec.options: name to what it is for, in a few words."""
    remote: ClassVar[bool] = False
    """Whether calls leave this process: decoding then holds them to a deadline."""
    default_root: ClassVar[str] = ""
    """Where the short form `--backend NAME` looks: a root as in Location; "" if it must be said."""
    staleness_bound: ClassVar[float] = 0.0
    """Seconds by which a `Freshness.FAST` search may lag behind what was flushed."""

    # -- place ---------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def connect(cls, location: Location) -> Self:
        """Bind to the datastore at `location`, which need not exist yet.

        Raises BackendUnavailable if the place cannot be reached.
        """

    @classmethod
    @abstractmethod
    def names(cls, location: Location) -> list[str]:
        """Names of the datastores at `location.root`, sorted. `location.name` is ignored."""

    @abstractmethod
    def create(self, spec: Spec, records: Mapping[str, bytes]) -> None:
        """Make the empty datastore and its first records; of two first writers one succeeds.

        The other gets StoreExists, but only once the datastore is whole. Raises StoreExists also
        if the name is taken by something else, UsageError if `check_spec` does.
        """

    @abstractmethod
    def spec(self) -> Spec:
        """What the datastore was created as. Raises StoreNotFound, StoreCorrupt.

        Called before most other calls: an adapter to whom it costs a round trip remembers it.
        """

    @abstractmethod
    def drop(self) -> None:
        """Remove the datastore, entries and records. Raises StoreNotFound."""

    def exists(self) -> bool:
        """Whether the datastore is there."""
        try:
            self.spec()
        except StoreNotFound:
            return False
        return True

    def check_spec(self, spec: Spec) -> None:
        """Raise UsageError unless a datastore can be created as `spec`; for `create`."""
        check_dimension(spec.dimension)
        if spec.storage not in self.storages:
            raise UsageError(
                f"This backend keeps keys as {', '.join(self.storages)}, not {spec.storage}."
            )
        for name in spec.options:
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise UsageError(f"This backend has no option {name!r}.", hint=f"It has: {known}.")

    # -- entries -------------------------------------------------------------------------------

    def upsert(self, entries: Entries) -> None:
        """Write entries; one whose id exists is replaced. Idempotent. Visible after `flush`.

        Raises InvalidEntries, with nothing written, for a wrong dimension, NaN, inf or keys that
        overflow the storage, a token outside uint32, a negative document or position, or an id that
        stands twice.
        """
        entries.check(self.spec())
        if len(entries):
            self._upsert(entries)

    def delete(self, documents: Sequence[int] | Int64) -> None:
        """Remove every entry of these document numbers; unknown ones are ignored."""
        numbers = np.unique(np.asarray(documents, dtype=np.int64))
        self.spec()
        if len(numbers):
            self._delete(numbers)

    def flush(self) -> None:  # noqa: B027  a backend whose writes are durable and visible at once needs none
        """Return when all that this object wrote is durable and seen by `LATEST` searches."""

    def search(
        self,
        queries: Float32,
        k: int,
        *,
        within: DocumentFilter | None = None,
        freshness: Freshness = Freshness.LATEST,
        with_keys: bool = False,
        timeout: float | None = None,
    ) -> Neighbours:
        """Find the k nearest entries of each query: float32 `[q, d]` in, rows `[q, k]` out.

        Rows come ascending by distance and are padded (see Neighbours) where fewer than k
        entries match. `timeout` in seconds bounds the call; local backends may ignore it.
        Raises UsageError (k < 1), InvalidEntries (bad queries), StoreNotFound, StoreCorrupt
        (an answer that cannot be), BackendUnavailable.
        """
        if k < 1:
            raise UsageError(f"k must be at least 1, not {k}.")
        dimension = self.spec().dimension
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != dimension:
            raise InvalidEntries(
                f"Queries have shape {queries.shape}; this datastore takes [q, {dimension}]."
            )
        check_vectors(queries, "Queries")
        if not len(queries):
            return Neighbours.none(0, k, dimension if with_keys else None)
        found = self._search(queries, k, within, freshness, with_keys, timeout)
        if np.isnan(found.distances).any():
            raise StoreCorrupt("A search found distances that are no numbers.")
        return found.sorted().padded(k)

    def scan(
        self,
        *,
        with_keys: bool = False,
        documents: Sequence[int] | Int64 | None = None,
        batch_size: int = 4096,
    ) -> Iterator[Entries]:
        """Yield every entry once, in bounded memory, in an order of the backend's choice.

        Batches hold 1 to `batch_size` entries; `documents` restricts the scan to those numbers.
        Without `with_keys`, `keys` has shape `[n, 0]`. Raises UsageError (batch_size < 1).
        """
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}.")
        self.spec()
        numbers = None if documents is None else np.unique(np.asarray(documents, dtype=np.int64))
        return self._scan(with_keys, numbers, batch_size)

    def count(self, documents: Sequence[int] | Int64 | None = None) -> int:
        """Count the entries, of these document numbers only if given."""
        return sum(len(batch) for batch in self.scan(documents=documents))

    @abstractmethod
    def _upsert(self, entries: Entries) -> None:
        """Write checked, non-empty entries."""

    @abstractmethod
    def _delete(self, documents: Int64) -> None:
        """Remove the entries of sorted, unique, non-empty document numbers."""

    @abstractmethod
    def _search(
        self,
        queries: Float32,
        k: int,
        within: DocumentFilter | None,
        freshness: Freshness,
        with_keys: bool,
        timeout: float | None,
    ) -> Neighbours:
        """Search for checked queries, `[q, d]` with q >= 1; rows may be short and unsorted."""

    @abstractmethod
    def _scan(self, with_keys: bool, documents: Int64 | None, batch_size: int) -> Iterator[Entries]:
        """Iterate the entries as `scan` promises."""

    # -- records -------------------------------------------------------------------------------

    @abstractmethod
    def put_records(self, records: Mapping[str, bytes]) -> None:
        """Write records, each atomically, durably; existing ones are replaced."""

    @abstractmethod
    def get_records(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read those of the named records that exist."""

    @abstractmethod
    def delete_records(self, names: Sequence[str]) -> None:
        """Remove records; unknown names are ignored."""

    @abstractmethod
    def scan_records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield (name, value) of the records whose name starts with `prefix`, in any order."""

    # -- housekeeping --------------------------------------------------------------------------

    @classmethod
    def bytes_per_entry(cls, spec: Spec) -> int:
        """Estimate what an entry will take on disk, for `ingest --dry-run`."""
        return spec.dimension * {"float16": 2, "int8": 1}.get(spec.storage, 4) + 24

    def versions(self) -> dict[str, str]:
        """Name the client library and the server, with their versions, for `doctor`."""
        return {}

    def size(self) -> int | None:
        """Count the bytes the datastore takes on disk (or in memory); None if it cannot tell."""
        return None

    def close(self) -> None:  # noqa: B027  nothing to release is a fine answer
        """Release connections and files; the object is not used afterwards."""
