"""Opening a datastore once, by whichever thread comes first, and as late as somebody may wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from knnlm_store.values import Location
from knnlm_store_milvus import creation, naming
from knnlm_store_milvus.connection import Connection
from knnlm_store_milvus.entries import EntryTable
from knnlm_store_milvus.failures import absent, too_slow
from knnlm_store_milvus.records import RecordTable


@dataclass(frozen=True, slots=True)
class Opened:
    """A datastore that was found, indexed and loaded."""

    entries: EntryTable
    records: RecordTable


def open_datastore(
    connection: Connection, location: Location, name: str, patience: float, end: float | None
) -> Opened:
    """Look the main collection up, through an alias if `name` is one, and make both ready.

    end: when to give up, on the monotonic clock. Raises StoreNotFound, StoreCorrupt,
    BackendUnavailable.
    """
    bounded = connection.until(end)
    found = bounded.describe(name)
    if found is None or found.mark is None:
        creation.refuse_half_made(bounded, location, name, patience)
        raise absent(str(location))
    table = EntryTable(connection, found)
    creation.make_ready(bounded, found.name, table.plan)
    return Opened(table, RecordTable(connection, naming.records_of(found.name)))


@contextmanager
def holding(lock: threading.RLock, label: str, end: float | None) -> Iterator[None]:
    """Hold a lock, which another thread may keep while a collection loads, or raise at `end`."""
    seconds = -1 if end is None else max(0.0, end - time.monotonic())
    if not lock.acquire(timeout=seconds):
        raise too_slow(label, "another call is opening the datastore")
    try:
        yield
    finally:
        lock.release()
