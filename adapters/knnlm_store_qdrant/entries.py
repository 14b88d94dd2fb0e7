"""The entries' collection: writing, finding, reading and removing points."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from qdrant_client import models

from knnlm_store import exact
from knnlm_store.values import DocumentFilter, Entries, Float32, Freshness, Int64, Neighbours
from knnlm_store_qdrant import replies
from knnlm_store_qdrant.copies import ORDERING, Page, Question, ask
from knnlm_store_qdrant.options import DOCUMENT, TOKEN
from knnlm_store_qdrant.records import Made
from knnlm_store_qdrant.server import Server

_T = TypeVar("_T")

_NUMBER = 22  # bytes of a float32 in JSON
_POINT = 100  # bytes of a point's id and payload in JSON
_BLOCK = 4096  # entries read at once, at most
_LEAST_EF = 128
_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class Limits:
    """What goes into one request, and how many requests are under way at once.

    sent, received: bytes of JSON; Qdrant takes 32 MiB. documents: numbers in a filter.
    """

    sent: int = 6 * 2**20
    received: int = 32 * 2**20
    documents: int = 2000
    streams: int = 4


@dataclass(frozen=True, slots=True)
class Manner:
    """How to search: `exact` compares every key; `rescored` mends what int8 rounded.

    half: the server compares in half precision, which large queries overflow. agreed: several
    copies are asked for what they agree on. Of a graph's neighbours, which differ from copy to
    copy, that would lose some, and any copy has all writes that were acknowledged.
    """

    exact: bool
    rescored: bool
    half: bool
    agreed: bool

    @classmethod
    def of(cls, made: Made, freshness: Freshness) -> Manner:
        """How a datastore that was made like this is searched."""
        exact, storage = made.index == "exact", made.spec.storage
        agreed = exact and freshness is Freshness.LATEST
        return cls(exact, storage == "int8", storage == "float16", agreed)

    def parameters(self, k: int) -> models.SearchParams:
        """Search parameters for k neighbours: the breadth must follow k."""
        if self.exact:
            return models.SearchParams(exact=True)
        rescore = models.QuantizationSearchParams(rescore=True, oversampling=2.0)
        return models.SearchParams(
            hnsw_ef=max(2 * k, _LEAST_EF), quantization=rescore if self.rescored else None
        )


class EntryCollection:
    """The points of a collection; threads may share it.

    A point's id is its entry's, so that writing twice is writing once.
    """

    def __init__(self, server: Server, name: str, limits: Limits) -> None:
        self._server, self._name, self._limits = server, name, limits
        self._pool = self._new_pool()

    def _new_pool(self) -> ThreadPoolExecutor:
        """A pool, whose threads start when they are needed."""
        return ThreadPoolExecutor(self._limits.streams, thread_name_prefix="knnlm-qdrant")

    def close(self) -> None:
        """End the threads; a later call starts others."""
        self._pool.shutdown()
        self._pool = self._new_pool()

    def upsert(self, entries: Entries) -> None:
        """Write entries; returns when all are durable and visible."""

        def write(part: slice) -> None:
            rows = entries[part]
            points = models.Batch(
                ids=rows.ids.tolist(),
                vectors=rows.keys.tolist(),
                payloads=[
                    {DOCUMENT: document, TOKEN: token}
                    for document, token in zip(
                        rows.documents.tolist(), rows.tokens.tolist(), strict=True
                    )
                ],
            )
            with self._server.calling() as client:
                done = client.upsert(self._name, points, wait=True, ordering=ORDERING)
            replies.require_done(done, self._server.place)

        size = self._limits.sent // (_NUMBER * entries.keys.shape[1] + _POINT)
        self._each(write, _parts(len(entries), size))

    def delete(self, documents: Int64) -> None:
        """Remove the entries of these document numbers."""
        for chosen in self._filters(DocumentFilter.keeping(documents)):
            assert chosen is not None
            selector = models.FilterSelector(filter=chosen)
            with self._server.calling() as client:
                done = client.delete(self._name, selector, wait=True, ordering=ORDERING)
            replies.require_done(done, self._server.place)

    def count(self, within: DocumentFilter | None) -> int:
        """Count the entries that pass."""
        total = 0
        for chosen in self._filters(within):
            with self._server.calling() as client:
                total += client.count(self._name, count_filter=chosen, exact=True).count
        return total

    def search(
        self,
        queries: Float32,
        k: int,
        within: DocumentFilter | None,
        manner: Manner,
        *,
        with_keys: bool,
        timeout: float | None,
    ) -> Neighbours:
        """Search for float32 `[q, d]`, in one request unless that would be too large."""
        until = None if timeout is None else time.monotonic() + timeout
        numbers = 0 if within is None else len(within.documents)
        width = queries.shape[1] if with_keys else None
        if within is not None and within.keep and not numbers:
            return Neighbours.none(len(queries), k, width)
        if manner.half and np.abs(queries).max() > _LARGEST_HALF:
            return self._search_here(queries, k, within, until, with_keys=with_keys)
        wanted = models.QueryRequest(
            filter=_passing(within),
            params=manner.parameters(k),
            limit=k,
            with_payload=True,
            with_vector=with_keys,
        )

        def search(part: slice) -> Neighbours:
            asked = [wanted.model_copy(update={"query": q}) for q in queries[part].tolist()]
            seconds = None if timeout is None else math.ceil(timeout)
            answers = ask(
                self._server,
                lambda client, consistency: client.query_batch_points(
                    self._name, asked, consistency=consistency, timeout=seconds
                ),
                until,
                agreed=manner.agreed,
            )
            found = replies.neighbours(answers, len(asked), k, width, self._server.place)
            return found.padded(k)

        sent = _NUMBER * (queries.shape[1] + numbers) + _POINT
        received = k * (_NUMBER * (width or 0) + _POINT)
        size = min(self._limits.sent // sent, self._limits.received // received)
        return _joined(self._each(search, _parts(len(queries), size)), axis=0)

    def scan(
        self,
        within: DocumentFilter | None,
        width: int | None,
        batch_size: int,
        until: float | None = None,
    ) -> Iterator[Entries]:
        """Iterate the entries by id; `width` is the dimension of the keys, None to leave them."""
        limit = min(batch_size, self._limits.sent // (_NUMBER * (width or 0) + _POINT))
        for chosen in self._filters(within):
            after: models.ExtendedPointId | None = None
            while True:
                page = self._page(chosen, max(1, limit), after, with_keys=width is not None)
                points, after = ask(self._server, page, until)
                if points:
                    yield replies.entries(points, width, self._server.place)
                if after is None:
                    break

    def _page(
        self,
        chosen: models.Filter | None,
        limit: int,
        after: models.ExtendedPointId | None,
        *,
        with_keys: bool,
    ) -> Question[Page]:
        """Make the question for the points that pass, from `after` on."""
        return lambda client, consistency: client.scroll(
            self._name,
            scroll_filter=chosen,
            limit=limit,
            offset=after,
            with_payload=True,
            with_vectors=with_keys,
            consistency=consistency,
        )

    def _search_here(
        self,
        queries: Float32,
        k: int,
        within: DocumentFilter | None,
        until: float | None,
        *,
        with_keys: bool,
    ) -> Neighbours:
        """Search by reading all keys: for queries that the server cannot hold."""
        width = queries.shape[1]
        best = Neighbours.none(len(queries), 0, width if with_keys else None)
        for batch in self.scan(within, width, _BLOCK, until):
            distances, rows = exact.nearest(queries, [(0, batch.keys, None)], k)
            found = Neighbours(
                distances,
                batch.tokens[rows],
                batch.documents[rows],
                batch.positions[rows],
                batch.keys[rows] if with_keys else None,
            )
            best = _joined([best, found], axis=1).sorted().padded(k)
        return best

    def _filters(self, within: DocumentFilter | None) -> Iterator[models.Filter | None]:
        """Filters that together pass what `within` does, each entry in one of them."""
        if within is None or not within.keep:
            yield _passing(within)
            return
        for part in _parts(len(within.documents), self._limits.documents):
            yield _passing(DocumentFilter.keeping(within.documents[part]))

    def _each(self, work: Callable[[slice], _T], parts: list[slice]) -> list[_T]:
        """Do `work` on all parts, some at once; after an error nothing of it is under way."""
        if len(parts) == 1:
            return [work(parts[0])]
        futures = [self._pool.submit(work, part) for part in parts]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
            wait(futures)


def _passing(within: DocumentFilter | None) -> models.Filter | None:
    """Translate a filter that is not empty."""
    if within is None or not len(within.documents):
        return None
    numbers = models.MatchAny(any=within.documents.tolist())
    condition = models.FieldCondition(key=DOCUMENT, match=numbers)
    if within.keep:
        return models.Filter(must=[condition])
    return models.Filter(must_not=[condition])


def _parts(count: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(start, start + size) for start in range(0, count, size)]


def _joined(found: list[Neighbours], axis: int) -> Neighbours:
    """Join rows of several requests (axis 0), or neighbours of the same rows (axis 1)."""
    if len(found) == 1:
        return found[0]
    keys = [each.keys for each in found if each.keys is not None]
    return Neighbours(
        np.concatenate([each.distances for each in found], axis),
        np.concatenate([each.tokens for each in found], axis),
        np.concatenate([each.documents for each in found], axis),
        np.concatenate([each.positions for each in found], axis),
        np.concatenate(keys, axis) if keys else None,
    )
