"""Entries in the main collection: rows of id, document, token and key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from pymilvus import DataType

from knnlm_store.errors import UsageError
from knnlm_store.values import (
    DocumentFilter,
    Entries,
    Float32,
    Freshness,
    Int64,
    Neighbours,
    Spec,
)
from knnlm_store_milvus.connection import BOUNDED, PAGE, STRONG, Collection, Connection
from knnlm_store_milvus.indexes import LARGEST_K, Plan
from knnlm_store_milvus.replies import read_entries, read_neighbours

TYPES = {"float32": DataType.FLOAT_VECTOR, "float16": DataType.FLOAT16_VECTOR}
_REQUEST = 8 * 2**20  # bytes of keys a request; gRPC's limit at the server is 64 MiB
_REPLY = 32 * 2**20
_HITS = 2**17  # hits an answer: pymilvus makes dictionaries of each
_DOCUMENTS = 5000  # document numbers an expression
_LITE_BYTES = 2**28  # Milvus Lite holds the differences of all queries and keys at once


def fields(spec: Spec) -> list[dict[str, Any]]:
    """The schema of a main collection."""
    number = {"datatype": DataType.INT64}
    return [
        {"field_name": "id", "is_primary": True, **number},
        {"field_name": "document", **number},
        {"field_name": "token", **number},
        {"field_name": "key", "datatype": TYPES[spec.storage], "dim": spec.dimension},
    ]


class EntryTable:
    """The entries of one datastore, whose spec and plan are what the collection says."""

    def __init__(self, connection: Connection, collection: Collection) -> None:
        """Read the spec and the plan. Raises StoreCorrupt, StoreError."""
        self._connection = connection
        self.name = collection.name
        self.plan = Plan.read(collection.mark or {}, f"{connection.label}/{collection.name}")
        with connection.reading():
            key = collection.fields["key"]
            storages = {kind: storage for storage, kind in TYPES.items()}
            self.spec = Spec(int(key["params"]["dim"]), storages[DataType(key["type"])])
        self._dtype = np.float16 if self.spec.storage == "float16" else np.float32
        self._width = self.spec.dimension * np.dtype(self._dtype).itemsize

    # -- writing -------------------------------------------------------------------------------

    def upsert(self, entries: Entries) -> None:
        """Write entries in requests of bounded size."""
        size = max(1, _REQUEST // (self._width + 64))
        for start in range(0, len(entries), size):
            part = entries[start : start + size]
            columns = zip(
                part.ids.tolist(),
                part.documents.tolist(),
                part.tokens.tolist(),
                part.keys.astype(self._dtype),
                strict=True,
            )
            names = ("id", "document", "token", "key")
            self._connection.upsert(
                self.name, [dict(zip(names, row, strict=True)) for row in columns]
            )

    def delete(self, documents: Int64) -> None:
        """Remove the entries of these document numbers."""
        for condition in _among(documents):
            self._connection.delete(self.name, condition)

    # -- reading -------------------------------------------------------------------------------

    def count(self, documents: Int64 | None) -> int:
        """Count the entries, of these document numbers only if given."""
        conditions: Iterable[str] = [""] if documents is None else _among(documents)
        return sum(self._counted(self._connection, condition) for condition in conditions)

    def _counted(self, connection: Connection, condition: str) -> int:
        rows = connection.query(self.name, condition, ["count(*)"])
        with connection.reading():
            return int(rows[0]["count(*)"])

    def scan(self, documents: Int64 | None, size: int, *, with_keys: bool) -> Iterator[Entries]:
        """Yield the entries in batches of at most `size`, in bounded memory."""
        wanted = ["id", "document", "token", *(["key"] if with_keys else [])]
        page = min(PAGE, max(1, _REPLY // (self._width + 64)) if with_keys else PAGE)
        for condition in ["id >= 0"] if documents is None else _among(documents):
            for rows in self._connection.pages(self.name, condition, wanted, page):
                with self._connection.reading():
                    entries = read_entries(rows, self.spec if with_keys else None)
                for start in range(0, len(entries), size):
                    yield entries[start : start + size]

    # -- searching -----------------------------------------------------------------------------

    def search(
        self,
        queries: Float32,
        k: int,
        within: DocumentFilter | None,
        freshness: Freshness,
        end: float | None,
        *,
        with_keys: bool,
    ) -> Neighbours:
        """Search in requests whose answers are bounded in size, until `end` (monotonic clock)."""
        if k > LARGEST_K:
            raise UsageError(
                f"Milvus finds at most {LARGEST_K:,} neighbours, not {k:,}.",
                hint="Choose a smaller k.",
            )
        condition = "" if within is None else _condition(within)
        if condition is None:
            return Neighbours.none(len(queries), k, self.spec.dimension if with_keys else None)
        level = STRONG if freshness is Freshness.LATEST else BOUNDED
        connection = self._connection.until(end)
        size = self._queries_at_once(connection, k, with_keys=with_keys)
        found = [
            self._ask(connection, queries[i : i + size], k, condition, level, with_keys=with_keys)
            for i in range(0, len(queries), size)
        ]
        return found[0] if len(found) == 1 else _joined(found)

    def _queries_at_once(self, connection: Connection, k: int, *, with_keys: bool) -> int:
        hit = 48 + (4 * self.spec.dimension if with_keys else 0)
        size = min(LARGEST_K, _HITS // k, _REPLY // (hit * k), _REPLY // self._width)
        if connection.place.lite:
            rows = max(1, self._counted(connection, ""))
            size = min(size, _LITE_BYTES // (4 * self.spec.dimension * rows))
        return max(1, size)

    def _ask(
        self,
        connection: Connection,
        queries: Float32,
        k: int,
        condition: str,
        level: str,
        *,
        with_keys: bool,
    ) -> Neighbours:
        with connection.calling() as (client, timeout):
            reply = client.search(
                self.name,
                list(queries.astype(self._dtype)),
                anns_field="key",
                filter=condition,
                limit=k,
                output_fields=["document", "token", *(["key"] if with_keys else [])],
                search_params=self.plan.search(k),
                consistency_level=level,
                timeout=timeout,
            )
        with connection.reading():
            return read_neighbours(reply, len(queries), k, self.spec if with_keys else None)


def _among(documents: Int64) -> Iterator[str]:
    """Conditions that together select these document numbers."""
    for start in range(0, len(documents), _DOCUMENTS):
        yield f"document in {documents[start : start + _DOCUMENTS].tolist()}"


def _condition(within: DocumentFilter) -> str | None:
    """The filter as Milvus writes it, "" if all pass; None if nothing can."""
    if not len(within.documents):
        return None if within.keep else ""
    return f"document {'in' if within.keep else 'not in'} {within.documents.tolist()}"


def _joined(parts: list[Neighbours]) -> Neighbours:
    width = max(part.distances.shape[1] for part in parts)
    padded = [part.padded(width) for part in parts]
    keys = None
    if padded[0].keys is not None:
        keys = np.concatenate([part.keys for part in padded if part.keys is not None])
    return Neighbours(
        np.concatenate([part.distances for part in padded]),
        np.concatenate([part.tokens for part in padded]),
        np.concatenate([part.documents for part in padded]),
        np.concatenate([part.positions for part in padded]),
        keys,
    )
