"""Making and removing a datastore: two collections, of which the main one is the commit.

The collection of records comes first. Its creation is the election: Milvus makes one collection
of a name, which bears the mark of its creator, however many try. The winner writes the first
records and makes the main collection; with that the datastore is there. Whoever finds it neither
indexed nor loaded, because its creator died, does that.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping

from knnlm_store.errors import BackendUnavailable, KnnlmError, StoreCorrupt, StoreExists, UsageError
from knnlm_store.values import Location, Spec
from knnlm_store_milvus import entries, records
from knnlm_store_milvus.building import wait_loaded
from knnlm_store_milvus.connection import Collection, Connection
from knnlm_store_milvus.indexes import Plan
from knnlm_store_milvus.naming import records_of
from knnlm_store_milvus.probe import check_float16

PATIENCE = 60.0
"""Seconds to wait for another's making of the datastore."""


def create(
    connection: Connection,
    location: Location,
    name: str,
    spec: Spec,
    first: Mapping[str, bytes],
    patience: float = PATIENCE,
) -> None:
    """Make the datastore whose main collection is `name`. Raises StoreExists, StoreCorrupt."""
    plan = Plan.of(spec, lite=connection.place.lite is not None)
    _refuse_taken(connection.describe(name), location)
    if spec.storage == "float16":
        check_float16(connection)
    creator = uuid.uuid4().hex
    if not _claim(connection, records_of(name), records.fields(), plan, creator):
        _await_other(connection, location, name, patience)
    try:
        table = records.RecordTable(connection, records_of(name))
        table.put(first, fresh=True)
        connection.ready(table.name, records.ANCHOR, records.INDEX, 1)
        _make_main(connection, location, name, spec, plan, creator)
    except BaseException:
        _undo(connection, name, creator)
        raise


def make_ready(connection: Connection, name: str, plan: Plan) -> None:
    """Index and load both collections, unless that is done."""
    waiting = [
        collection
        for collection, field, index, replicas in (
            (name, "key", plan.index(), plan.replicas),
            (records_of(name), records.ANCHOR, records.INDEX, 1),
        )
        if not connection.ready(collection, field, index, replicas)
    ]
    for collection in waiting:
        wait_loaded(connection, collection)


def refuse_half_made(
    connection: Connection, location: Location, name: str, patience: float
) -> None:
    """Raise StoreCorrupt if a creator began long ago and never came to the main collection."""
    beside = connection.describe(records_of(name))
    if beside is not None and beside.mark is not None and connection.describe(name) is None:
        with connection.reading():
            began = float(beside.mark["made"])
        if time.time() - began > patience:
            raise _interrupted(location)


def drop(connection: Connection, name: str) -> bool:
    """Remove a datastore, half made or whole; the main collection first. Says if one was there.

    Its aliases go with it: Milvus refuses to drop what has some since 2.5.5; before, it leaves them
    behind, meaning nothing and in the way of new ones.
    """
    main, beside = connection.describe(name), connection.describe(records_of(name))
    for found in (main, beside):
        if found is not None and found.mark is not None:
            for alias in connection.aliases_of(found.name):
                connection.drop_alias(alias)
            connection.drop(found.name)
    return any(found is not None and found.mark is not None for found in (main, beside))


def _make_main(
    connection: Connection, location: Location, name: str, spec: Spec, plan: Plan, creator: str
) -> None:
    if not _claim(connection, name, entries.fields(spec), plan, creator):
        _refuse_taken(connection.describe(name), location)
    try:
        make_ready(connection, name, plan)
    except BackendUnavailable:
        raise
    except KnnlmError as error:
        raise UsageError(
            f"This Milvus does not take the index {plan}, or {plan.replicas} replicas: {error}",
            hint="Change the options index, m, ef_construction and replicas.",
        ) from error


def _claim(
    connection: Connection, name: str, fields: list[dict[str, object]], plan: Plan, creator: str
) -> bool:
    """Try to make a collection; says whether the one that is there now is ours."""
    failure: KnnlmError | None = None
    try:
        connection.create(name, fields, plan.mark(creator), plan.shards)
    except KnnlmError as error:
        failure = error  # it may be there already, made by another, or by us before a lost answer
    found = connection.describe(name)
    if found is None or found.name != name:
        raise failure or StoreExists(
            f"The name {name} is taken by an alias.", hint="Take another name."
        )
    return found.mark is not None and found.mark.get("creator") == creator


def _await_other(connection: Connection, location: Location, name: str, patience: float) -> None:
    """Wait until the winner is done, and raise."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        main = connection.describe(name)
        _refuse_taken(main, location, connection)
        if connection.describe(records_of(name)) is None:
            raise BackendUnavailable(
                f"Another process gave up making {location}.", hint="Try again."
            )
        time.sleep(0.2)
    raise _interrupted(location)


def _interrupted(location: Location) -> StoreCorrupt:
    return StoreCorrupt(
        f"The making of {location} was interrupted.", hint=f"Run: knnlm-store rm {location}"
    )


def _refuse_taken(
    found: Collection | None, location: Location, connection: Connection | None = None
) -> None:
    """Raise StoreExists if there is a collection of that name, once it can be used."""
    if found is None:
        return
    if found.mark is None:
        raise StoreExists(
            f"{location} is a Milvus collection that knnlm-store did not make.",
            hint="Take another name.",
        )
    if connection is not None:
        make_ready(connection, found.name, Plan.read(found.mark, str(location)))
    raise StoreExists(
        f"There is a datastore at {location} already.", hint="Use it, or take another name."
    )


def _undo(connection: Connection, name: str, creator: str) -> None:
    """Remove what this creator made, as far as Milvus answers."""
    for collection in (name, records_of(name)):
        try:
            found = connection.describe(collection)
            if found is not None and found.mark and found.mark.get("creator") == creator:
                connection.drop(collection)
        except KnnlmError:
            return
