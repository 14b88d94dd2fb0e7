"""Calls to one Milvus: each with a deadline, errors mapped, answers checked.

Every object has a connection of its own: the one that pymilvus would share outlives its users,
and closing it would break the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from pymilvus import MilvusClient
from pymilvus.client.types import LoadState

from knnlm_store.errors import BackendUnavailable, StoreError, StoreNotFound
from knnlm_store.values import Location
from knnlm_store_milvus import lite, tls
from knnlm_store_milvus.failures import mapped, redacted, too_slow
from knnlm_store_milvus.indexes import parse_mark
from knnlm_store_milvus.place import Place

PAGE = 4096  # rows that a query asks for at once; Milvus gives 16,384 at most
_MARK = "knnlm_store"
STRONG, BOUNDED = "Strong", "Bounded"


@dataclass(frozen=True, slots=True)
class Collection:
    """What Milvus says of a collection: its own name, not an alias; our mark, None if foreign."""

    name: str
    mark: Mapping[str, Any] | None
    fields: Mapping[str, Mapping[str, Any]]


class Connection:
    """A channel to a server, or to a file of Milvus Lite; threads may share it."""

    def __init__(self, place: Place) -> None:
        """Connect; raises BackendUnavailable."""
        self.place, self.label = place, place.label
        self._end: float | None = None
        self._writing: AbstractContextManager[object] = nullcontext()
        uri = place.uri
        if place.lite is not None:
            uri = lite.acquire(place.lite)
            self._writing = lite.write_lock(place.lite)
        end = time.monotonic() + place.timeout
        try:
            self._client = self._connect(uri)
        except BackendUnavailable as failure:
            self._leave()
            raise tls.explained(failure, place, end) from failure.__cause__
        except BaseException:
            self._leave()
            raise

    def _connect(self, uri: str) -> MilvusClient:
        place = self.place
        with mapped(self.label, place.token):
            client = MilvusClient(
                uri,
                token=place.token,
                db_name=place.database,
                timeout=place.timeout,
                dedicated=True,
                grpc_options={"grpc.enable_retries": 0} | (lite.UNWATCHED if place.lite else {}),
                **({"server_pem_path": place.ca} if place.ca else {}),
            )
        # The client would repeat a call whose server is gone, connecting anew under a lock of the
        # whole process; our callers decide what is worth repeating, and gRPC reconnects by itself.
        client._handler._on_rpc_error = _give_up
        return client

    def close(self) -> None:
        """Close the channel, and a file that nobody else uses."""
        with mapped(self.label, self.place.token):
            self._client.close()
        self._leave()

    def _leave(self) -> None:
        if self.place.lite is not None:
            lite.release(self.place.lite)

    def until(self, end: float | None) -> Self:
        """The same channel, whose calls must all be done by `end`, on the monotonic clock.

        None leaves to each call the seconds that any may take.
        """
        bounded = copy(self)
        bounded._end = end
        return bounded

    def left(self) -> float:
        """Seconds that the next call may take. Raises BackendUnavailable if there are none."""
        if self._end is None:
            return self.place.timeout
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise too_slow(self.label, "the time is up")
        return seconds

    @contextmanager
    def calling(self) -> Iterator[tuple[MilvusClient, float]]:
        """Hold the client and the seconds of a call."""
        with mapped(self.label, self.place.token):
            yield self._client, self.left()

    # -- collections ---------------------------------------------------------------------------

    def describe(self, name: str) -> Collection | None:
        """Look at a collection, by its name or an alias; None if there is none."""
        try:
            with self.calling() as (client, timeout):
                reply = client.describe_collection(name, timeout=timeout)
        except StoreNotFound:
            return None
        with self.reading():
            texts = (reply["description"], (reply.get("properties") or {}).get(_MARK, ""))
            marks = [mark for mark in map(parse_mark, texts) if mark is not None]
            fields = {field["name"]: field for field in reply["fields"]}
            return Collection(str(reply["collection_name"]), marks[0] if marks else None, fields)

    def names(self) -> list[str]:
        """Collections of the database, without aliases."""
        with self.calling() as (client, timeout):
            return [str(name) for name in client.list_collections(timeout=timeout)]

    def create(
        self, name: str, fields: Sequence[Mapping[str, Any]], mark: str, shards: int
    ) -> None:
        """Make a collection; no error if there is one alike."""
        on_server = self.place.lite is None  # Milvus Lite drops descriptions
        with self.calling() as (client, timeout), self._writing:
            schema = client.create_schema(
                auto_id=False, enable_dynamic_field=False, description=mark if on_server else ""
            )
            for field in fields:
                schema.add_field(**field)
            client.create_collection(
                name,
                schema=schema,
                num_shards=shards,
                consistency_level=STRONG,  # of `pages`: pymilvus lets an iterator name none
                timeout=timeout,
                **({} if on_server else {"properties": {_MARK: mark}}),
            )

    def drop(self, name: str) -> None:
        """Remove a collection; no error if there is none."""
        with self.calling() as (client, timeout), self._writing:
            client.drop_collection(name, timeout=timeout)

    def set_alias(self, alias: str, name: str, *, new: bool) -> None:
        """Have an alias, which exists unless `new`, stand for a collection."""
        with self.calling() as (client, timeout), self._writing:
            change = client.create_alias if new else client.alter_alias
            change(name, alias, timeout=timeout)

    def drop_alias(self, alias: str) -> None:
        """Remove an alias; no error if there is none."""
        with self.calling() as (client, timeout), self._writing:
            client.drop_alias(alias, timeout=timeout)

    def aliases_of(self, name: str) -> list[str]:
        """Aliases of a collection; with "" all that the database has."""
        with self.calling() as (client, timeout):
            reply = client.list_aliases(name, timeout=timeout)
        with self.reading():
            return [str(alias) for alias in reply["aliases"]]

    def aliases(self) -> dict[str, str]:
        """Aliases of the database, each with its collection."""
        names = self.aliases_of("")
        found = {alias: self.describe(alias) for alias in names}
        return {alias: held.name for alias, held in found.items() if held is not None}

    # -- index and memory ----------------------------------------------------------------------

    def index(self, name: str, field: str) -> dict[str, Any] | None:
        """Look at the index of a field; None if it has none."""
        with self.calling() as (client, timeout):
            reply = client.describe_index(name, field, timeout=timeout)
        return dict(reply) if reply else None

    def ready(self, name: str, field: str, index: Mapping[str, Any], replicas: int) -> bool:
        """Index a collection and begin to load it, unless that is done; says whether it is."""
        if not self.left_to_load(name):
            return True
        if self.index(name, field) is None:
            with self.calling() as (client, timeout), self._writing:
                wanted = client.prepare_index_params()
                wanted.add_index(field, index_name=field, **index)
                client.create_index(name, wanted, timeout=timeout, sync=False)
        more = {} if self.place.lite else {"replica_number": replicas}
        with self.calling() as (client, timeout), self._writing:
            client.load_collection(name, timeout=timeout, _async=True, **more)
        return False

    def flush(self, name: str) -> None:
        """Have Milvus seal what is growing, which starts the indexing of it."""
        with self.calling() as (client, timeout), self._writing:
            client.flush(name, timeout=timeout)

    def left_to_load(self, name: str) -> int:
        """Per cent of a collection that are still to be loaded; 0 if it can be searched."""
        with self.calling() as (client, timeout):
            found = client.get_load_state(name, timeout=timeout)
        loaded = found["state"] == LoadState.Loaded
        return 0 if loaded else max(1, 100 - int(found.get("progress", 0)))

    # -- rows ----------------------------------------------------------------------------------

    def upsert(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows, durably; one whose id exists is replaced."""
        with self.calling() as (client, timeout), self._writing:
            client.upsert(name, rows, timeout=timeout)

    def delete(self, name: str, condition: str) -> None:
        """Remove the rows that meet a condition."""
        with self.calling() as (client, timeout), self._writing:
            client.delete(name, filter=condition, timeout=timeout)

    def query(self, name: str, condition: str, fields: list[str]) -> list[dict[str, Any]]:
        """Read the rows that meet a condition, all that was written before."""
        with self.calling() as (client, timeout):
            return list(
                client.query(
                    name,
                    filter=condition,
                    output_fields=fields,
                    consistency_level=STRONG,
                    timeout=timeout,
                )
            )

    def pages(
        self, name: str, condition: str, fields: list[str], size: int = PAGE
    ) -> Iterator[list[dict[str, Any]]]:
        """Read the same in pages, in the order of the id."""
        # Not with `reduce_stop_for_best`: 2.3.5 then ends a page where any of its segments ends,
        # and gives up to `size` rows of each. Only an empty page is known to be the last.
        after = ""
        while True:
            with self.calling() as (client, timeout):
                page: list[dict[str, Any]] = list(
                    client.query(
                        name,
                        filter=" and ".join(filter(None, (after, f"({condition})"))),
                        output_fields=fields,
                        limit=size,
                        timeout=timeout,
                        iterator="True",  # by id; reads at the collection's own level, Strong
                    )
                )
            if not page:
                return
            yield page
            with self.reading():
                last = page[-1]["id"]
                after = f"id > {last}" if isinstance(last, int) else f'id > "{last}"'

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Make an answer that lacks what it must hold an error of ours."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"Milvus at {self.label} gave an answer that cannot be read"
                f" ({type(error).__name__}: {redacted(str(error), self.place.token)}).",
                hint="Check that it is a Milvus, and that pymilvus is as new as it is.",
            ) from error

    def version(self) -> str:
        """Version of the server."""
        with self.calling() as (client, timeout):
            return str(client.get_server_version(timeout=timeout))


@contextmanager
def visiting(location: Location) -> Iterator[Connection | None]:
    """Hold a connection to a place; None where there is no file of Milvus Lite."""
    place = Place.of(location)
    if place.lite is not None and not place.lite.exists():
        yield None
        return
    connection = Connection(place)
    try:
        yield connection
    finally:
        connection.close()


def _give_up(error: Exception) -> NoReturn:
    raise error
