"""From the server's replies to entries and neighbours, looked at before anything is believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from knnlm_store.errors import BackendUnavailable
from knnlm_store.values import MAX_TOKEN, Entries, Float32, Int64, Neighbours
from knnlm_store_qdrant.failures import unreadable
from knnlm_store_qdrant.options import DOCUMENT, TOKEN

Hits: TypeAlias = Sequence[models.ScoredPoint | models.Record]
Bool: TypeAlias = NDArray[np.bool_]
_T = TypeVar("_T", bound=np.generic)

_FARTHEST = float(np.sqrt(np.finfo(np.float32).max))  # whose square float32 holds


def entries(points: Hits, dimension: int | None, place: str) -> Entries:
    """Read n points as entries; `dimension` of their keys, None if none were asked for."""
    try:
        ids = _integers([point.id for point in points])
        payloads: list[dict[str, Any]] = [point.payload or {} for point in points]
        tokens = _integers([payload[TOKEN] for payload in payloads])
        documents = _integers([payload[DOCUMENT] for payload in payloads])
        keys = _keys(points, dimension)
    except KeyError as error:
        raise unreadable(place, f"an entry without {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise unreadable(place, "an entry with parts that are none of ours") from error
    positions = ids - documents
    if len(ids) and (
        int(positions.min()) < 0
        or int(documents.min()) < 0
        or int(tokens.min()) < 0
        or int(tokens.max()) > MAX_TOKEN
    ):
        raise unreadable(place, "an entry whose id, document and token do not belong together")
    return Entries(keys, tokens, documents, positions)


def neighbours(
    replies: Sequence[models.QueryResponse], rows: int, k: int, dimension: int | None, place: str
) -> Neighbours:
    """Read the replies to a batch of `rows` queries; rows come padded, `[rows, <=k]`."""
    if len(replies) != rows:
        raise unreadable(place, f"{len(replies)} answers to {rows} queries")
    lengths = [len(reply.points) for reply in replies]
    width = max(lengths, default=0)
    if width > k:
        raise unreadable(place, f"{width} neighbours where {k} were asked for")
    hits = [point for reply in replies for point in reply.points]
    found = entries(hits, dimension, place)
    scores = np.array([hit.score for hit in hits], dtype=np.float64)
    if not ((scores >= 0) & (scores <= _FARTHEST)).all():
        raise unreadable(place, "distances that are none")
    filled = np.arange(width) < np.array(lengths, dtype=np.int64)[:, None]
    _refuse_twice(found.ids, filled, place)
    return Neighbours(
        # Qdrant's Euclid is the root
        _placed((scores**2).astype(np.float32), filled, np.inf),
        _placed(found.tokens, filled, -1),
        _placed(found.documents, filled, -1),
        _placed(found.positions, filled, -1),
        None if dimension is None else _placed(found.keys, filled, 0),
    )


def _placed(values: NDArray[_T], filled: Bool, blank: float) -> NDArray[_T]:
    """Put `values` `[n, ...]` into the `filled` places of rows `[q, width, ...]`."""
    rows = np.full((*filled.shape, *values.shape[1:]), blank, dtype=values.dtype)
    rows[filled] = values
    return rows


def _refuse_twice(ids: Int64, filled: Bool, place: str) -> None:
    row_ids = np.full(filled.shape, -1, np.int64)
    row_ids[filled] = ids
    row_ids.sort(axis=1)
    if ((row_ids[:, 1:] == row_ids[:, :-1]) & (row_ids[:, 1:] >= 0)).any():
        raise unreadable(place, "a neighbour that stands twice in one answer")


def _integers(values: list[Any]) -> Int64:
    """Make int64 `[n]` of integers; raises ValueError for anything else."""
    array = np.array(values)
    if len(values) and array.dtype.kind not in "iu":
        raise ValueError("no integers")
    if array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError("integers beyond int64")
    return array.astype(np.int64)


def _keys(points: Hits, dimension: int | None) -> Float32:
    """Read the vectors, float32 `[n, d]`; raises ValueError for other shapes."""
    if dimension is None:
        return np.empty((len(points), 0), np.float32)
    with np.errstate(over="ignore"):
        keys = np.array([point.vector for point in points], dtype=np.float32)
    if len(points) and keys.shape != (len(points), dimension):
        raise ValueError("vectors of another dimension")
    if not np.isfinite(keys).all():
        raise ValueError("vectors of no numbers")
    return keys.reshape(len(points), dimension)


def require_done(result: models.UpdateResult, place: str) -> None:
    """Raise BackendUnavailable for a write that was accepted but is not done."""
    if result.status != models.UpdateStatus.COMPLETED:
        raise BackendUnavailable(
            f"Qdrant at {place} has not finished a write in time ({result.status}).",
            hint="Wait a little, then run this again.",
        )
