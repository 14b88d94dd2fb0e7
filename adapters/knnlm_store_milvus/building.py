"""Waiting for what Milvus does in the background: loading a collection, and indexing all of it.

That takes as long as the datastore is large: only a wait in which nothing gets further ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from knnlm_store.errors import StoreError
from knnlm_store_milvus.connection import Connection
from knnlm_store_milvus.failures import too_slow

_STALLED = 1800.0  # seconds; Milvus counts whole segments, of up to 1 GB
_UNSEEN = 60.0  # seconds; servers look for new indexes every ten
_EXACT = 4992  # rows that Milvus always compares one by one if they have no index


def wait_loaded(connection: Connection, name: str) -> None:
    """Return when a collection can be searched. Raises BackendUnavailable."""
    _wait(connection, lambda: connection.left_to_load(name), "loading the collection")


def index_all(connection: Connection, name: str) -> int:
    """Seal what is growing and wait for the index; gives the rows it has, 0 if it gained none."""
    before = _state(connection, name)[0]
    connection.flush(name)
    _wait(connection, lambda: _state(connection, name)[1], "building the index")
    after = _state(connection, name)[0]
    with suppress(StoreError):  # it is built, and will be used also where that cannot be seen
        left = partial(_unused, connection, name, after)
        _wait(connection, left, "using the index", _UNSEEN)
    return after if after != before else 0


def _wait(
    connection: Connection, left: Callable[[], int], what: str, patience: float = _STALLED
) -> None:
    """Return when nothing is left; raise when what is left has not changed for so many seconds."""
    pause, last, since = 0.02, -1, time.monotonic()
    while now_left := left():
        if now_left != last:
            last, since = now_left, time.monotonic()
        elif time.monotonic() - since > patience:
            raise too_slow(connection.label, f"{what} got no further for {patience:.0f} s")
        time.sleep(min(pause, connection.left()))
        pause = min(0.5, 1.5 * pause)


def _unused(connection: Connection, name: str, indexed: int) -> int:
    """Rows that are searched without their index, once these are more than Milvus compares."""
    with connection.calling() as (client, timeout):
        segments = client.list_loaded_segments(name, timeout=timeout)
    used = {segment.segment_id: segment.num_rows for segment in segments if segment.index_id}
    left = indexed - sum(used.values())
    return left if left > _EXACT else 0


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
