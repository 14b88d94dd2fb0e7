"""Waiting for what Milvus does in the background: loading a collection, and indexing all of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from knnlm_store.errors import StoreError
from knnlm_store_milvus.connection import Connection
from knnlm_store_milvus.failures import too_slow

_LONGEST = 600.0  # seconds, beyond any one call's deadline


def wait_loaded(connection: Connection, name: str) -> None:
    """Return when a collection can be searched. Raises BackendUnavailable."""
    _wait(connection, lambda: connection.is_loaded(name), "loading the collection")


def index_all(connection: Connection, name: str) -> int:
    """Seal what is growing and wait for the index; gives the rows it has, 0 if it gained none."""
    before = _state(connection, name)[0]
    connection.flush(name)
    _wait(connection, lambda: _state(connection, name)[1] == 0, "building the index")
    after = _state(connection, name)[0]
    return after if after != before else 0


def _wait(connection: Connection, done: Callable[[], bool], what: str) -> None:
    pause, end = 0.02, time.monotonic() + _LONGEST
    while not done():
        if time.monotonic() > end:
            raise too_slow(connection.label, f"{what} takes longer than {_LONGEST:.0f} s")
        time.sleep(min(pause, connection.left()))
        pause = min(0.5, 1.5 * pause)


def _state(connection: Connection, name: str) -> tuple[int, int]:
    """Rows of sealed segments that are indexed, and that are still to be."""
    index = connection.index(name, "key") or {}
    with connection.reading():
        if index["state"] == "Failed":
            raise StoreError(
                f"Milvus at {connection.label} failed to build the index of {name}.",
                hint="See the server's log, then run it again.",
            )
        done, total = int(index["indexed_rows"]), int(index["total_rows"])
        return done, max(total - done, int(index["pending_index_rows"]))
