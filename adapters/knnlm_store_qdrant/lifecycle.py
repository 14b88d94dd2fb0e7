"""Making and dropping a datastore, of which two collections are the parts.

The records' collection comes first and decides who of several makers wins; what says how the
datastore was made comes last, and until it is there the datastore is not. Dropping goes the
other way round: a datastore half made or half dropped is absent, and can be dropped again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

from qdrant_client import models

from knnlm_store.errors import KnnlmError, StoreCorrupt, StoreExists, StoreMismatch, StoreNotFound
from knnlm_store.values import Spec
from knnlm_store_qdrant import naming
from knnlm_store_qdrant.naming import records_of
from knnlm_store_qdrant.options import DOCUMENT, Options
from knnlm_store_qdrant.records import GROUP, Made, RecordCollection
from knnlm_store_qdrant.server import Server

_LOOK_AGAIN = 0.1  # seconds


def create(
    server: Server,
    collection: str,
    spec: Spec,
    records: Mapping[str, bytes],
    *,
    name: str,
    patience: float,
) -> None:
    """Make both collections, or raise StoreExists once another's are whole.

    `patience`: seconds to wait for another maker. Raises StoreCorrupt if it never finishes.
    """
    options = Options.of(spec.options)
    beside = records_of(collection)
    try:
        with server.calling() as client:
            client.create_collection(beside, **options.records_collection())
    except StoreExists as error:
        _await_other(RecordCollection(server, beside), name, patience)
        raise StoreExists(
            f"There is a datastore {name} on Qdrant at {server.place} already.",
            hint="Use it, or take another name.",
        ) from error
    made: list[str] = [beside]
    try:
        with server.calling() as client:
            client.create_collection(collection, **options.entries_collection(spec))
        made.insert(0, collection)
        _fill(server, collection, Made(spec, options.index), records)
    except BaseException as error:
        for each in made:
            with suppress(KnnlmError), server.calling() as client:
                client.delete_collection(each)
        if isinstance(error, StoreExists):
            raise _foreign(server, collection) from error
        raise


def drop(server: Server, collection: str) -> None:
    """Remove both collections; raises StoreNotFound if the one of the records is not there.

    Then the other is not ours, whatever it is called.
    """
    beside = records_of(collection)
    RecordCollection(server, beside).clear_made()
    for each in (collection, beside):
        with suppress(StoreNotFound), server.calling() as client:
            client.delete_collection(each)


def names(server: Server) -> list[str]:
    """Names of the datastores that are whole, sorted."""
    with server.calling() as client:
        collections = [each.name for each in client.get_collections().collections]
    found = naming.datastores(collections).items()
    return sorted(name for name, collection in found if _is_whole(server, collection))


def _is_whole(server: Server, collection: str) -> bool:
    try:
        return RecordCollection(server, records_of(collection)).made() is not None
    except StoreNotFound:  # dropped meanwhile
        return False
    except (StoreCorrupt, StoreMismatch):  # there, if of no use: who removes it needs its name
        return True


def _fill(server: Server, collection: str, made: Made, records: Mapping[str, bytes]) -> None:
    """Index the payload, before there is any data, and write the first records."""
    beside = records_of(collection)
    for each, field, kind in (
        (collection, DOCUMENT, models.PayloadSchemaType.INTEGER),
        (beside, GROUP, models.PayloadSchemaType.KEYWORD),
    ):
        with server.calling() as client:
            client.create_payload_index(each, field, field_schema=kind, wait=True)
    kept = RecordCollection(server, beside)
    kept.put(records)
    kept.set_made(made)


def _await_other(kept: RecordCollection, name: str, patience: float) -> None:
    """Return when another maker has finished; raise if it seems to have died."""
    until = time.monotonic() + patience
    while kept.made() is None:
        if time.monotonic() > until:
            raise StoreCorrupt(
                f"The making of the datastore {name} was interrupted.",
                hint=f"Run: knnlm-store rm {name}",
            )
        time.sleep(_LOOK_AGAIN)


def _foreign(server: Server, collection: str) -> StoreExists:
    return StoreExists(
        f"Qdrant at {server.place} has a collection {collection} that knnlm-store did not make.",
        hint="Take another name.",
    )
