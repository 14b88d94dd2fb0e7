"""The Milvus adapter's face to the core."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import ClassVar, Self, cast

import numpy as np

from knnlm_store.backend import Aliased, Indexed, VectorBackend
from knnlm_store.errors import StoreNotFound, UsageError
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
from knnlm_store_milvus import aliasing, building, creation, indexes, naming
from knnlm_store_milvus.connection import Collection, Connection, visiting
from knnlm_store_milvus.failures import NotLoaded, absent
from knnlm_store_milvus.opening import Opened, holding, open_datastore
from knnlm_store_milvus.place import Place


class MilvusBackend(VectorBackend, Indexed, Aliased):
    """A datastore in two collections of a Milvus server, or of a file of Milvus Lite.

    Every acknowledged write is durable, and seen by every later `LATEST` search; a `FAST` one may
    lag by what the server calls graceful time. Collections stay loaded when an object is closed,
    for others search them.
    """

    storages: tuple[str, ...] = ("float32", "float16")
    options: ClassVar[Mapping[str, str]] = indexes.OPTIONS
    remote: ClassVar[bool] = True
    default_root: ClassVar[str] = "//localhost:19530"
    staleness_bound: ClassVar[float] = 5.0
    patience: ClassVar[float] = creation.PATIENCE
    """Seconds to wait for another process that is making the datastore."""

    def __init__(self, location: Location) -> None:
        """Connect; a file of Milvus Lite that is not there is left alone until `create`."""
        self._location = location
        self._place = Place.of(location)
        self._asked = naming.encode(location.name)
        self._name = self._asked
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._store: Opened | None = None
        if self._place.lite is not None:
            self.storages = ("float32",)
        if self._place.lite is None or self._place.lite.exists():
            self._find()

    # -- place ---------------------------------------------------------------------------------

    @classmethod
    def connect(cls, location: Location) -> Self:
        """Bind to the datastore of that name, or that an alias of that name means now.

        What is in a file is bound to by a LiteBackend.
        """
        if cls is MilvusBackend and not location.network:
            from knnlm_store_milvus.embedded import LiteBackend  # which is made of this class

            return cast("Self", LiteBackend(location))
        return cls(location)

    @classmethod
    def names(cls, location: Location) -> list[str]:
        """Names of the datastores of the database, or of the file if there is one."""
        with visiting(location) as connection:
            found = set(connection.names()) if connection else set()
        mains = {name for name in found if naming.records_of(name) in found}
        return sorted(name for name in map(naming.decode, mains) if name is not None)

    def create(self, spec: Spec, records: Mapping[str, bytes]) -> None:
        """Make the datastore; of several creators Milvus itself lets one win."""
        self.check_spec(spec)
        place, patience = self._location, self.patience
        creation.create(self._connected(), place, self._asked, spec, records, patience)

    def spec(self) -> Spec:
        """What the datastore was created as; asked for once."""
        return self._opened().entries.spec

    def exists(self) -> bool:
        """Whether the datastore is there, asked anew."""
        if self._is_missing_file():
            return False
        found = self._find()
        return found is not None and found.mark is not None

    def drop(self) -> None:
        """Remove the datastore, half made or whole."""
        if not self.exists():
            if self._connection is None or not creation.drop(self._connected(), self._name):
                raise absent(str(self._location))
        elif self._name != self._asked:
            raise UsageError(
                f"{self._location} is an alias of {naming.decode(self._name)}.",
                hint="Drop the datastore by its own name, or remove the alias.",
            )
        else:
            creation.drop(self._connected(), self._name)
        self._store = None

    # -- entries -------------------------------------------------------------------------------

    def count(self, documents: Sequence[int] | Int64 | None = None) -> int:
        """Count the entries, of these document numbers only if given."""
        numbers = None if documents is None else np.unique(np.asarray(documents, np.int64))
        with self._using() as store:
            return store.entries.count(numbers)

    def _upsert(self, entries: Entries) -> None:
        with self._using() as store:
            store.entries.upsert(entries)

    def _delete(self, documents: Int64) -> None:
        with self._using() as store:
            store.entries.delete(documents)

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
        """Search as the contract says; the timeout bounds opening the datastore as well."""
        if timeout is not None:
            end = time.monotonic() + timeout
            self._opened(end)
            timeout = end - time.monotonic()
        return super().search(
            queries, k, within=within, freshness=freshness, with_keys=with_keys, timeout=timeout
        )

    def _search(
        self,
        queries: Float32,
        k: int,
        within: DocumentFilter | None,
        freshness: Freshness,
        with_keys: bool,
        timeout: float | None,
    ) -> Neighbours:
        end = None if timeout is None else time.monotonic() + timeout
        with self._using(end) as store:
            return store.entries.search(queries, k, within, freshness, end, with_keys=with_keys)

    def _scan(self, with_keys: bool, documents: Int64 | None, batch_size: int) -> Iterator[Entries]:
        with self._using() as store:
            yield from store.entries.scan(documents, batch_size, with_keys=with_keys)

    # -- records -------------------------------------------------------------------------------

    def put_records(self, records: Mapping[str, bytes]) -> None:
        """Write records, each atomically."""
        with self._using() as store:
            store.records.put(records)

    def get_records(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read those of the named records that exist."""
        with self._using() as store:
            return store.records.get(names)

    def delete_records(self, names: Sequence[str]) -> None:
        """Remove records; unknown names are ignored."""
        with self._using() as store:
            store.records.delete(names)

    def scan_records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the records whose name starts with `prefix`, in no order."""
        with self._using() as store:
            yield from store.records.scan(prefix)

    # -- index ---------------------------------------------------------------------------------

    def build_index(self) -> str | None:
        """Have Milvus seal what is growing, and wait until searches of it use the index."""
        with self._using() as store:
            if store.entries.plan.type == "FLAT":
                return None
            began = time.monotonic()
            rows = building.index_all(self._connected(), store.entries.name)
            if not rows:
                return None
            seconds = time.monotonic() - began
            return f"built {store.entries.plan} over {rows:,} entries in {seconds:.1f} s"

    def describe_index(self) -> str:
        """`exact`, or the index with its parameters."""
        return str(self._opened().entries.plan)

    # -- aliases -------------------------------------------------------------------------------

    def set_alias(self, alias: str) -> None:
        """Have `alias` stand for this datastore, in one step."""
        name = self._opened().entries.name
        aliasing.set_alias(self._connected(), alias, name)

    @classmethod
    def remove_alias(cls, location: Location) -> None:
        """Remove the alias at `location`, and nothing else."""
        aliasing.remove_alias(location)

    @classmethod
    def aliases(cls, location: Location) -> dict[str, str]:
        """Aliases of the datastores of the database."""
        return aliasing.aliases(location)

    # -- housekeeping --------------------------------------------------------------------------

    @classmethod
    def bytes_per_entry(cls, spec: Spec) -> int:
        """Bytes of a key, of three numbers, of their log, and of an index' links."""
        key = spec.dimension * (2 if spec.storage == "float16" else 4)
        return 2 * (key + 24) + key + 128

    def versions(self) -> dict[str, str]:
        """Versions of pymilvus and of the server."""
        found = self._connected().version()
        bare = found.removeprefix("milvus_lite-")
        server = f"milvus {found.removeprefix('v')}" if bare == found else f"milvus-lite {bare}"
        return {"pymilvus": version("pymilvus"), "server": server}

    def close(self) -> None:
        """Close the channel, and the file if nobody else uses it; collections stay loaded."""
        with self._lock:
            self._store = None
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _connected(self) -> Connection:
        if (connection := self._connection) is not None:
            return connection  # also while another thread holds the lock to open the datastore
        with self._lock:
            if self._connection is None:
                self._connection = Connection(self._place)
            return self._connection

    def _find(self) -> Collection | None:
        """Look the main collection up, through an alias if the name is one."""
        found = self._connected().describe(self._name)
        if found is not None:
            self._name = found.name
        return found

    def _opened(self, end: float | None = None) -> Opened:
        """The datastore, looked up and made ready once; `end` as in `open_datastore`."""
        if (store := self._store) is not None:
            return store
        with holding(self._lock, self._place.label, end):
            if self._store is None:
                if self._is_missing_file():
                    raise absent(str(self._location))
                self._store = open_datastore(
                    self._connected(), self._location, self._name, self.patience, end
                )
                self._name = self._store.entries.name
            return self._store

    @contextmanager
    def _using(self, end: float | None = None) -> Iterator[Opened]:
        """Hold the datastore; forget it when it turns out to be gone, or to be released.

        What else fails says nothing of the datastore, and looking it up anew takes several calls.
        """
        store = self._opened(end)
        try:
            yield store
        except NotLoaded:
            self._forget(store)
            raise
        except StoreNotFound as error:
            self._forget(store)
            raise absent(str(self._location)) from error

    def _forget(self, store: Opened) -> None:
        if self._store is store:  # and not what another thread opened since
            self._store = None

    def _is_missing_file(self) -> bool:
        file = self._place.lite
        return self._connection is None and file is not None and not file.exists()
