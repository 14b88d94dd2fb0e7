"""Entries in the main collection: rows of id, document, token and key."""

from __future__ import annotations

import time
from collections.abc import Iterator
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
        total = 0
        for condition in [""] if documents is None else _among(documents):
            rows = self._connection.query(self.name, condition, ["count(*)"])
            with self._connection.reading():
                total += int(rows[0]["count(*)"])
        return total

    def scan(self, documents: Int64 | None, size: int, *, with_keys: bool) -> Iterator[Entries]:
        """Yield the entries in batches of at most `size`, in bounded memory."""
        wanted = ["id", "document", "token", *(["key"] if with_keys else [])]
        page = min(PAGE, max(1, _REPLY // (self._width + 64)) if with_keys else PAGE)
        for condition in ["id >= 0"] if documents is None else _among(documents):
            for rows in self._connection.pages(self.name, condition, wanted, page):
                with self._connection.reading():
                    entries = self._entries(rows, with_keys=with_keys)
                for start in range(0, len(entries), size):
                    yield entries[start : start + size]

    def _entries(self, rows: list[dict[str, Any]], *, with_keys: bool) -> Entries:
        ids, documents, tokens = (
            np.array([row[name] for row in rows], np.int64) for name in ("id", "document", "token")
        )
        keys = np.zeros((len(rows), 0), np.float32)
        if with_keys:
            keys = self._keys([row["key"] for row in rows])
        return Entries(keys, tokens, documents, ids - documents)

    # -- searching -----------------------------------------------------------------------------

    def search(
        self,
        queries: Float32,
        k: int,
        within: DocumentFilter | None,
        freshness: Freshness,
        timeout: float | None,
        *,
        with_keys: bool,
    ) -> Neighbours:
        """Search in requests whose answers are bounded in size."""
        if k > LARGEST_K:
            raise UsageError(
                f"Milvus finds at most {LARGEST_K:,} neighbours, not {k:,}.",
                hint="Choose a smaller k.",
            )
        condition = "" if within is None else _condition(within)
        if condition is None:
            return Neighbours.none(len(queries), k, self.spec.dimension if with_keys else None)
        level = STRONG if freshness is Freshness.LATEST else BOUNDED
        size = self._queries_at_once(k, with_keys=with_keys)
        end = None if timeout is None else time.monotonic() + timeout
        found = []
        for start in range(0, len(queries), size):
            left = None if end is None else max(0.001, end - time.monotonic())
            part = queries[start : start + size]
            found.append(self._ask(part, k, condition, level, left, with_keys))
        return found[0] if len(found) == 1 else _joined(found)

    def _queries_at_once(self, k: int, *, with_keys: bool) -> int:
        hit = 48 + (4 * self.spec.dimension if with_keys else 0)
        size = min(LARGEST_K, _HITS // k, _REPLY // (hit * k), _REPLY // self._width)
        if self._connection.place.lite:
            size = min(size, _LITE_BYTES // (4 * self.spec.dimension * max(1, self.count(None))))
        return max(1, size)

    def _ask(
        self,
        queries: Float32,
        k: int,
        condition: str,
        level: str,
        timeout: float | None,
        with_keys: bool,
    ) -> Neighbours:
        with self._connection.calling(timeout) as (client, deadline):
            reply = client.search(
                self.name,
                list(queries.astype(self._dtype)),
                anns_field="key",
                filter=condition,
                limit=k,
                output_fields=["document", "token", *(["key"] if with_keys else [])],
                search_params=self.plan.search(k),
                consistency_level=level,
                timeout=deadline,
            )
        with self._connection.reading():
            return self._neighbours(reply, len(queries), with_keys=with_keys)

    def _neighbours(self, reply: Any, rows: int, *, with_keys: bool) -> Neighbours:
        """Lay hits out in rows that are as wide as the longest."""
        if len(reply) != rows:
            raise ValueError(f"{len(reply)} rows for {rows} queries")
        width = max(map(len, reply))
        distances = np.full((rows, width), np.inf, np.float32)
        tokens, documents, positions = (np.full((rows, width), -1, np.int64) for _ in range(3))
        keys = np.zeros((rows, width, self.spec.dimension), np.float32) if with_keys else None
        for row, hits in enumerate(reply):
            n = len(hits)
            held = [hit["entity"] for hit in hits]
            distances[row, :n] = hits.distances
            tokens[row, :n] = [entity["token"] for entity in held]
            documents[row, :n] = [entity["document"] for entity in held]
            positions[row, :n] = np.array(hits.ids, np.int64) - documents[row, :n]
            if keys is not None:
                keys[row, :n] = self._keys([entity["key"] for entity in held])
        return Neighbours(distances, tokens, documents, positions, keys)

    def _keys(self, values: list[Any]) -> Float32:
        """Decode keys: lists of floats, or the bytes of float16, at times in a list."""
        if self.spec.storage == "float16":
            raw = b"".join(value[0] if isinstance(value, list) else value for value in values)
            keys = np.frombuffer(raw, np.float16).astype(np.float32)
        else:
            keys = np.array(values, np.float32)
        return keys.reshape(len(values), self.spec.dimension)


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
