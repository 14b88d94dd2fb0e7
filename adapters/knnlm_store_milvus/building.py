"""Waiting until all of a collection is indexed."""

from __future__ import annotations

from knnlm_store.errors import StoreError
from knnlm_store_milvus.connection import Connection


def index_all(connection: Connection, name: str) -> int:
    """Seal what is growing and wait for the index; gives the rows it has, 0 if it gained none."""
    before = _state(connection, name)[0]
    connection.flush(name)
    connection.wait(lambda: _state(connection, name)[1] == 0, "building the index")
    after = _state(connection, name)[0]
    return after if after != before else 0


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
