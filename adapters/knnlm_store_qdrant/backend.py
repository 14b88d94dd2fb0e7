"""The Qdrant adapter's face to the core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from typing import ClassVar, Self, cast

from knnlm_store.backend import Aliased, Indexed, VectorBackend
from knnlm_store.errors import BackendUnavailable, StoreError, StoreNotFound, UsageError
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
from knnlm_store_qdrant import aliasing, indexing, lifecycle, naming
from knnlm_store_qdrant.entries import EntryCollection, Limits, Manner
from knnlm_store_qdrant.options import MOST_DIMENSIONS, OPTIONS, STORAGES, Options
from knnlm_store_qdrant.records import Made, RecordCollection
from knnlm_store_qdrant.server import Server, opened

OVERHEAD = 550
"""Bytes of an entry besides its key, as measured: links, payload, ids, and room ahead."""


class QdrantBackend(VectorBackend, Indexed, Aliased):
    """A datastore in two collections: its entries, and its records.

    A write is acknowledged when all copies of the collection have it, and whoever asks sees it.
    Any number of processes and machines may read and write at once.
    """

    storages = STORAGES
    options: ClassVar[Mapping[str, str]] = OPTIONS
    remote: ClassVar[bool] = True
    default_root: ClassVar[str] = "//localhost:6333"

    limits: ClassVar[Limits] = Limits()
    """How much goes into one request."""
    indexed_kilobytes: ClassVar[int] = 10_000
    """Segments with this much of float32 keys are indexed, once an index was asked for."""
    patience: ClassVar[float] = 30.0
    """Seconds to wait for another process that is making the same datastore."""
    stall: ClassVar[float] = 600.0
    """Seconds in which a server that has an index to build must have begun."""

    def __init__(self, location: Location, server: Server) -> None:
        """Bind to a datastore of `server`, which `close` closes."""
        self._location, self._server = location, server
        self._alias = False
        self._bind(naming.collection_of(location.name))
        self._known: Made | None = None

    # -- place ---------------------------------------------------------------------------------

    @classmethod
    def connect(cls, location: Location) -> Self:
        """Ask the server for its aliases, and bind to the datastore, or to what the alias means.

        What is in a folder is bound to by an EmbeddedBackend.
        """
        if cls is QdrantBackend and not location.network:
            from knnlm_store_qdrant.embedded import EmbeddedBackend  # which is made of this class

            return cast("Self", EmbeddedBackend.connect(location))
        collection = naming.collection_of(location.name)
        server = cls._reach(location)
        try:
            backend = cls(location, server)
            target = aliasing.targets(server).get(collection) if server.exists() else None
        except BaseException:
            server.close()
            raise
        if target is not None:
            backend._alias = True
            backend._bind(target)
        return backend

    @classmethod
    def names(cls, location: Location) -> list[str]:
        """Names of the datastores that are whole, sorted."""
        with closing(cls._reach(location)) as server:
            return lifecycle.names(server) if server.exists() else []

    def create(self, spec: Spec, records: Mapping[str, bytes]) -> None:
        """Make both collections; see lifecycle."""
        self.check_spec(spec)
        lifecycle.create(
            self._server,
            self._collection,
            spec,
            records,
            name=str(self._location),
            patience=self.patience,
        )
        self._forget()

    def check_spec(self, spec: Spec) -> None:
        """Raise UsageError unless a datastore can be created as `spec`."""
        super().check_spec(spec)
        Options.of(spec.options)
        if spec.dimension > MOST_DIMENSIONS:
            raise UsageError(
                f"Qdrant keeps keys of up to {MOST_DIMENSIONS} dimensions, not {spec.dimension}."
            )

    def spec(self) -> Spec:
        """What the datastore was created as; asked once."""
        return self._made().spec

    def exists(self) -> bool:
        """Ask the server whether the datastore is there."""
        self._forget()
        return super().exists()

    def drop(self) -> None:
        """Remove both collections, and the aliases with them."""
        if self._alias:
            raise UsageError(
                f"{self._location} is an alias of another datastore.",
                hint="Drop that one by its own name, or remove the alias.",
            )
        with self._answering():
            lifecycle.drop(self._server, self._collection)
        self._forget()

    # -- entries -------------------------------------------------------------------------------

    def count(self, documents: Sequence[int] | Int64 | None = None) -> int:
        """Count the entries, of these document numbers only if given."""
        self.spec()
        within = None if documents is None else DocumentFilter.keeping(documents)
        with self._answering():
            return self._entries.count(within)

    def _upsert(self, entries: Entries) -> None:
        with self._answering():
            self._entries.upsert(entries)

    def _delete(self, documents: Int64) -> None:
        with self._answering():
            self._entries.delete(documents)

    def _search(
        self,
        queries: Float32,
        k: int,
        within: DocumentFilter | None,
        freshness: Freshness,
        with_keys: bool,
        timeout: float | None,
    ) -> Neighbours:
        manner = Manner.of(self._made(), freshness)
        with self._answering():
            return self._entries.search(
                queries, k, within, manner, with_keys=with_keys, timeout=timeout
            )

    def _scan(self, with_keys: bool, documents: Int64 | None, batch_size: int) -> Iterator[Entries]:
        width = self.spec().dimension if with_keys else None
        within = None if documents is None else DocumentFilter.keeping(documents)
        with self._answering():
            yield from self._entries.scan(within, width, batch_size)

    # -- records -------------------------------------------------------------------------------

    def put_records(self, records: Mapping[str, bytes]) -> None:
        """Write records, each atomically."""
        self.spec()
        with self._answering():
            self._records.put(records)

    def get_records(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read those of the named records that exist."""
        self.spec()
        with self._answering():
            return self._records.get(names)

    def delete_records(self, names: Sequence[str]) -> None:
        """Remove records; unknown names are ignored."""
        self.spec()
        with self._answering():
            self._records.delete(names)

    def scan_records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the records whose name starts with `prefix`, in no order."""
        self.spec()
        with self._answering():
            yield from self._records.scan(prefix)

    # -- index ---------------------------------------------------------------------------------

    def build_index(self) -> str | None:
        """Have the server build the index and keep it up from now on; wait until it has."""
        if self._made().index == "exact":
            return None
        with self._answering():
            return indexing.build(
                self._server, self._collection, self.indexed_kilobytes, self.stall
            )

    def describe_index(self) -> str:
        """`exact`, or HNSW with its number of links and what it covers."""
        if self._made().index == "exact":
            return "exact"
        with self._answering():
            return indexing.Progress.of(self._server, self._collection).describe()

    # -- aliases -------------------------------------------------------------------------------

    def set_alias(self, alias: str) -> None:
        """Have `alias` stand for this datastore, in one request."""
        self.spec()
        with self._answering():
            aliasing.point(self._server, alias, self._collection)

    @classmethod
    def remove_alias(cls, location: Location) -> None:
        """Remove the alias at `location`, in one request."""
        with closing(cls._reach(location)) as server:
            aliasing.remove(server, location.name)

    @classmethod
    def aliases(cls, location: Location) -> dict[str, str]:
        """Aliases of datastores, each with the datastore's name."""
        with closing(cls._reach(location)) as server:
            return aliasing.listed(server) if server.exists() else {}

    # -- housekeeping --------------------------------------------------------------------------

    @classmethod
    def bytes_per_entry(cls, spec: Spec) -> int:
        """Bytes of a key, of its links in the graph, and of payload, ids and their index."""
        number = {"float16": 2, "float32": 4, "int8": 5}[spec.storage]
        return number * spec.dimension + OVERHEAD

    def versions(self) -> dict[str, str]:
        """The client's version, and what the server calls itself."""
        with self._server.calling() as client:
            info = client.info()
        return {"qdrant-client": version("qdrant-client"), "server": f"{info.title} {info.version}"}

    def close(self) -> None:
        """Release connections and threads; the embedded engine ends with its last user."""
        self._entries.close()
        self._server.close()

    @classmethod
    def _reach(cls, location: Location) -> Server:
        """Reach for the server of a location; nothing is asked of it yet."""
        return opened(location)

    def _bind(self, collection: str) -> None:
        self._collection = collection
        self._entries = EntryCollection(self._server, collection, self.limits)
        self._records = RecordCollection(self._server, naming.records_of(collection))

    def _made(self) -> Made:
        """How the datastore was made. Raises StoreNotFound, StoreCorrupt, StoreMismatch."""
        made = self._known
        if made is None:
            with self._answering():
                made = self._records.made() if self._server.exists() else None
            if made is None:
                raise self._absent()
            self._known = made
        return made

    def _forget(self) -> None:
        self._known = None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Forget what was known when a call is refused: the datastore may be another by now."""
        try:
            yield
        except BackendUnavailable:
            raise  # says nothing of the datastore, and the next search has a deadline to keep
        except StoreNotFound as error:
            self._forget()
            raise self._absent() from error
        except StoreError:
            self._forget()
            raise

    def _absent(self) -> StoreNotFound:
        said = f"There is no datastore at {self._location}."
        hint = "Check the name, or ingest to create it."
        if self._alias:
            meant = naming.name_of(self._collection) or self._collection
            said = f"{self._location} was opened as {meant}, which is gone."
            hint = f"Open {self._location} again; it may stand for another datastore now."
        return StoreNotFound(said, hint=hint)
