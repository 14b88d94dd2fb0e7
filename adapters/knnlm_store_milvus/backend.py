"""The Milvus adapter's face to the core."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from knnlm_store.backend import Aliased, Indexed, VectorBackend
from knnlm_store.errors import StoreError, StoreExists, StoreNotFound, UsageError
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
from knnlm_store_milvus import building, creation, indexes, naming
from knnlm_store_milvus.connection import Collection, Connection, visiting
from knnlm_store_milvus.entries import EntryTable
from knnlm_store_milvus.failures import absent
from knnlm_store_milvus.place import Place
from knnlm_store_milvus.records import RecordTable


@dataclass(frozen=True, slots=True)
class _Opened:
    """A datastore that was found, indexed and loaded."""

    entries: EntryTable
    records: RecordTable


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
        self._store: _Opened | None = None
        if self._place.lite is not None:
            self.storages = ("float32",)
        if self._place.lite is None or self._place.lite.exists():
            self._find()

    # -- place ---------------------------------------------------------------------------------

    @classmethod
    def connect(cls, location: Location) -> Self:
        """Bind to the datastore of that name, or that an alias of that name means now."""
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
        connection = self._connected()
        creation.create(
            connection, self._location, self._asked, spec, records, patience=self.patience
        )

    def spec(self) -> Spec:
        """What the datastore was created as; asked for once."""
        return self._opened().entries.spec

    def exists(self) -> bool:
        """Whether the datastore is there, asked anew."""
        if self._connection is None and self._place.lite and not self._place.lite.exists():
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

    def _search(
        self,
        queries: Float32,
        k: int,
        within: DocumentFilter | None,
        freshness: Freshness,
        with_keys: bool,
        timeout: float | None,
    ) -> Neighbours:
        with self._using() as store:
            return store.entries.search(queries, k, within, freshness, timeout, with_keys=with_keys)

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
        """Have Milvus seal what is growing, and wait until all of it is indexed."""
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
        coded, connection = naming.encode(alias), self._connected()
        found = connection.describe(coded)
        if found is not None and found.name == coded:
            raise StoreExists(
                f"{alias} is a datastore or a collection, and cannot be an alias.",
                hint="Take another name.",
            )
        connection.set_alias(coded, name, new=found is None)

    @classmethod
    def remove_alias(cls, location: Location) -> None:
        """Remove the alias at `location`, and nothing else."""
        coded = naming.encode(location.name)
        with visiting(location) as connection:
            found = connection.describe(coded) if connection else None
            if connection is None or found is None or found.name == coded:
                raise StoreNotFound(f"There is no alias {location}.", hint="Run: knnlm-store list")
            connection.drop_alias(coded)

    @classmethod
    def aliases(cls, location: Location) -> dict[str, str]:
        """Aliases of the datastores of the database."""
        with visiting(location) as connection:
            pairs = connection.aliases() if connection else {}
        named = {naming.decode(alias): naming.decode(name) for alias, name in pairs.items()}
        return {alias: name for alias, name in named.items() if alias and name}

    # -- housekeeping --------------------------------------------------------------------------

    @classmethod
    def bytes_per_entry(cls, spec: Spec) -> int:
        """Bytes of a key, of three numbers, of their log, and of an index' links."""
        key = spec.dimension * (2 if spec.storage == "float16" else 4)
        return 2 * (key + 24) + key + 128

    def versions(self) -> dict[str, str]:
        """Versions of pymilvus and of the server."""
        found = self._connected().version()
        lite = found.removeprefix("milvus_lite-")
        server = f"milvus {found.removeprefix('v')}" if lite == found else f"milvus-lite {lite}"
        return {"pymilvus": version("pymilvus"), "server": server}

    def size(self) -> int | None:
        """Bytes of the datastore's folders in a file of Milvus Lite; a server does not tell."""
        if self._place.lite is None or not self.exists():
            return None
        names = (self._name, naming.records_of(self._name))
        folders = [Path(self._place.lite) / "collections" / name for name in names]
        files = (path for folder in folders for path in folder.rglob("*"))
        return sum(path.stat().st_size for path in files if path.is_file())

    def close(self) -> None:
        """Close the channel, and the file if nobody else uses it; collections stay loaded."""
        with self._lock:
            self._store = None
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _connected(self) -> Connection:
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

    def _opened(self) -> _Opened:
        """The datastore, looked up and made ready once."""
        with self._lock:
            if self._store is not None:
                return self._store
            if not self.exists() or (found := self._find()) is None:
                if self._connection is not None:
                    creation.refuse_half_made(
                        self._connection, self._location, self._name, self.patience
                    )
                raise absent(str(self._location))
            connection = self._connected()
            table = EntryTable(connection, found)
            creation.make_ready(connection, found.name, table.plan)
            beside = RecordTable(connection, naming.records_of(found.name))
            self._store = _Opened(table, beside)
            return self._store

    @contextmanager
    def _using(self) -> Iterator[_Opened]:
        """Hold the datastore; forget it when it turns out to be gone, or to be released."""
        store = self._opened()
        try:
            yield store
        except StoreError as error:
            if error.retryable or isinstance(error, StoreNotFound):
                self._store = None
            if isinstance(error, StoreNotFound):
                raise absent(str(self._location)) from error
            raise
