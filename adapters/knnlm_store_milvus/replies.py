"""From rows and hits to entries and neighbours, looked at before anything is believed.

What cannot be raises ValueError, TypeError or KeyError, which `Connection.reading` makes ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from knnlm_store.values import MAX_TOKEN, Entries, Float32, Int64, Neighbours, Spec


def read_entries(rows: Sequence[Any], spec: Spec | None) -> Entries:
    """Read n rows as entries; `spec` of their keys, None if none were asked for."""
    ids, documents, tokens = (
        _integers([row[name] for row in rows]) for name in ("id", "document", "token")
    )
    keys = np.zeros((len(rows), 0), np.float32)
    if spec is not None:
        keys = _keys([row["key"] for row in rows], spec)
    return _checked(ids, documents, tokens, keys)


def read_neighbours(reply: Any, rows: int, k: int, spec: Spec | None) -> Neighbours:
    """Lay hits out in rows that are as wide as the longest, `[rows, <=k]`; `spec` as above."""
    if len(reply) != rows:
        raise ValueError(f"{len(reply)} rows for {rows} queries")
    width = max(map(len, reply))
    if width > k:
        raise ValueError(f"{width} neighbours where {k} were asked for")
    distances = np.full((rows, width), np.inf, np.float32)
    tokens, documents, positions = (np.full((rows, width), -1, np.int64) for _ in range(3))
    keys = None if spec is None else np.zeros((rows, width, spec.dimension), np.float32)
    for row, hits in enumerate(reply):
        n = len(hits)
        found = _hits(hits, spec)
        distances[row, :n] = _distances(hits.distances)
        tokens[row, :n] = found.tokens
        documents[row, :n] = found.documents
        positions[row, :n] = found.positions
        if keys is not None:
            keys[row, :n] = found.keys
    return Neighbours(distances, tokens, documents, positions, keys)


def _hits(hits: Any, spec: Spec | None) -> Entries:
    """Read the hits of one query as entries, each of which may stand there once."""
    held = [hit["entity"] for hit in hits]
    ids = _integers(list(hits.ids))
    documents = _integers([entity["document"] for entity in held])
    tokens = _integers([entity["token"] for entity in held])
    keys = np.zeros((len(held), 0), np.float32)
    if spec is not None:
        keys = _keys([entity["key"] for entity in held], spec)
    if len(np.unique(ids)) != len(ids):
        raise ValueError("a neighbour that stands twice in one answer")
    return _checked(ids, documents, tokens, keys)


def _checked(ids: Int64, documents: Int64, tokens: Int64, keys: Float32) -> Entries:
    """Entries, if an id, a document and a token may belong together."""
    positions = ids - documents
    if len(ids) and (
        int(documents.min()) < 0
        or int(positions.min()) < 0
        or int(tokens.min()) < 0
        or int(tokens.max()) > MAX_TOKEN
    ):
        raise ValueError("an entry whose id, document and token do not belong together")
    return Entries(keys, tokens, documents, positions)


def _integers(values: list[Any]) -> Int64:
    """Make int64 `[n]` of integers, and of nothing else."""
    array = np.array(values) if values else np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype != np.int64:
        raise ValueError("something else where an integer belongs")
    return array


def _distances(values: Any) -> Float32:
    distances = np.array(values, np.float32)
    if not np.isfinite(distances).all():
        raise ValueError("distances that are none")
    return distances


def _keys(values: list[Any], spec: Spec) -> Float32:
    """Decode keys: lists of floats, or the bytes of float16, at times in a list."""
    if spec.storage == "float16":
        raw = b"".join(value[0] if isinstance(value, list) else value for value in values)
        keys = np.frombuffer(raw, np.float16).astype(np.float32)
    else:
        keys = np.array(values, np.float32)
    if not np.isfinite(keys).all():
        raise ValueError("keys that hold no numbers")
    return keys.reshape(len(values), spec.dimension)
