"""From neighbours to the documents that made each token's p_kNN."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from knnlm_store.attribution import Hit, Ranked
from knnlm_store.datastore import Datastore
from knnlm_store.documents import read
from knnlm_store.forgetting import not_there
from knnlm_store.interpolation import Float64
from knnlm_store.several import Weighed
from knnlm_store.values import DocumentFilter, Float32, Int64

HITS = 3
"""Entries of a document that are told of for one token, at most."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Neighbours of all parts side by side, as `weighed` has them, with their places.

    stores: index of the datastore, documents: number, positions: all int64 `[q, n]`. distances:
    squared L2, float32 `[q, n]`.
    """

    weighed: Weighed
    stores: Int64
    documents: Int64
    positions: Int64
    distances: Float32


class Share(NamedTuple):
    """What a document has of one token's p_kNN.

    document: its index in the library. number: of the version that holds the first hit.
    """

    document: int
    share: float
    number: int
    hits: tuple[Hit, ...]


class Traced(NamedTuple):
    """One token: its probabilities, and the largest shares of p_kNN; other: what the rest has."""

    token: int
    p_lm: float
    p_knn: float
    lmbda: float
    p: float
    shares: Sequence[Share]
    other: float


class Library:
    """The documents of some datastores; their catalogs are read once, at the beginning.

    Holds every document's id in memory. documents: those that were met, as index of the datastore
    and id, None if the catalog does not have it.
    """

    def __init__(self, stores: Iterable[Datastore]) -> None:
        self.stores = tuple(stores)
        self.documents: list[tuple[int, str | None]] = []
        self._places: dict[tuple[int, str | int], int] = {}
        self._numbers: list[dict[str, tuple[int, ...]]] = [
            {d.id: (*d.stale, d.version.number) for d in store.documents()} for store in self.stores
        ]
        self._ids = [
            {number: name for name, numbers in known.items() for number in numbers}
            for known in self._numbers
        ]

    def leaving_out(self, documents: Iterable[str]) -> list[DocumentFilter | None]:
        """Give each datastore's filter without these documents, None where it has none of them.

        Entries of earlier versions that are still there are left out too. Raises StoreError for
        ids that no datastore has.
        """
        documents = list(documents)
        require_documents(self.stores, documents)
        numbers = ([n for d in documents for n in known.get(d, ())] for known in self._numbers)
        return [DocumentFilter.leaving_out(mine) if mine else None for mine in numbers]

    def find(self, stores: Int64, numbers: Int64) -> Int64:
        """Give each document's index in `documents`, int64 `[n]`, by datastore and number."""
        found = np.empty(len(numbers), np.int64)
        for store in np.unique(stores).tolist():
            mine = stores == store
            each, inverse = np.unique(numbers[mine], return_inverse=True)
            places = [self._place(store, number) for number in each.tolist()]
            found[mine] = np.array(places, np.int64)[inverse]
        return found

    def _place(self, store: int, number: int) -> int:
        name = self._ids[store].get(number)
        key = store, number if name is None else name
        if key not in self._places:
            self._places[key] = len(self.documents)
            self.documents.append((store, name))
        return self._places[key]


def require_documents(stores: Sequence[Datastore], documents: Iterable[str]) -> None:
    """Raise StoreError for a document that none of the datastores has."""
    for document in documents:
        found = (read(store.backend, [document]).get(document) for store in stores)
        if all(record is None or record.forgotten for record in found):
            raise not_there(stores, document, (d.id for store in stores for d in store.documents()))


class Tracer:
    """Traces tokens, and keeps account of what each document put into all of them.

    top: documents that are told of for one token, at most.
    """

    def __init__(self, library: Library, top: int) -> None:
        self._library = library
        self._top = top
        self._contributions = np.zeros(0)
        self._tokens = np.zeros(0, np.int64)

    def trace(self, seen: Seen, targets: Int64, p_lm: Float64) -> list[Traced]:
        """Trace the tokens `targets`, int64 `[q]`, of which the model gives p_lm, float64 `[q]`."""
        lmbda = seen.weighed.lmbda
        holds = seen.weighed.tokens == targets[:, None]
        shares = np.where(holds, np.exp(seen.weighed.log_shares), 0.0)  # [q, n]
        p_knn = shares.sum(axis=1)
        p = lmbda * p_knn + (1 - lmbda) * p_lm
        grouped = _grouped(self._library, seen, shares)
        self._account(grouped, lmbda, p)
        bounds = np.searchsorted(grouped.rows, np.arange(len(targets) + 1))
        largest = [self._largest(grouped, start, end) for start, end in pairwise(bounds.tolist())]
        columns = (each.tolist() for each in (targets, p_lm, p_knn, lmbda, p))
        return [Traced(*row, *found) for *row, found in zip(*columns, largest, strict=True)]

    def ranked(self) -> list[tuple[int, Ranked]]:
        """Rank the documents, each with its index in the library, the largest contribution first.

        Of equal ones the id decides.
        """
        stores, documents = self._library.stores, self._library.documents
        ranked = [
            (i, Ranked(name, str(stores[store].location), contribution, tokens))
            for i, ((store, name), contribution, tokens) in enumerate(
                zip(documents, self._contributions.tolist(), self._tokens.tolist(), strict=True)
            )
        ]
        return sorted(ranked, key=lambda r: (-r[1].contribution, r[1].document or "", r[1].store))

    def _account(self, grouped: _Grouped, lmbda: Float64, p: Float64) -> None:
        rows, documents, n = grouped.rows, grouped.documents, len(self._library.documents)
        # where p is 0 a share was too small to be seen in it
        put = lmbda[rows] * grouped.shares / np.maximum(p[rows], 1e-300)
        more = n - len(self._tokens)
        self._contributions = np.pad(self._contributions, (0, more))
        self._contributions += np.bincount(documents, put, minlength=n)
        self._tokens = np.pad(self._tokens, (0, more)) + np.bincount(documents, minlength=n)

    def _largest(self, grouped: _Grouped, start: int, end: int) -> tuple[list[Share], float]:
        """Of the groups of one row, give the largest, and the sum of the others."""
        order = start + np.argsort(-grouped.shares[start:end], kind="stable")
        rest = grouped.shares[order[self._top :]].sum()
        return [grouped.share(group) for group in order[: self._top].tolist()], float(rest)


@dataclass(frozen=True, slots=True)
class _Grouped:
    """Hits by row and document: g groups in the order of rows.

    rows, documents (index in the library): int64 `[g]`. shares: float64 `[g]`. bounds: of each
    group's hits in `hits`, int64 `[g + 1]`. hits: number, position, distance and share, the
    largest share of a group first, `[h]` each.
    """

    rows: Int64
    documents: Int64
    shares: Float64
    bounds: Int64
    hits: tuple[Int64, Int64, Float32, Float64]

    def share(self, group: int) -> Share:
        start, end = self.bounds[group], self.bounds[group + 1]
        numbers, *rest = (each[start : min(end, start + HITS)].tolist() for each in self.hits)
        hits = tuple(Hit(*hit) for hit in zip(*rest, strict=True))
        document, share = int(self.documents[group]), float(self.shares[group])
        return Share(document, share, numbers[0], hits)


def _grouped(library: Library, seen: Seen, shares: Float64) -> _Grouped:
    """Group what has a share, float64 `[q, n]`, by row and document."""
    rows, columns = np.nonzero(shares)
    at = rows, columns
    documents = library.find(seen.stores[at], seen.documents[at])
    order = np.lexsort((-shares[at], documents, rows))
    rows, documents, at = rows[order], documents[order], (rows[order], columns[order])
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (rows[1:] != rows[:-1]) | (documents[1:] != documents[:-1])
    firsts = np.flatnonzero(new)
    hits = seen.documents[at], seen.positions[at], seen.distances[at], shares[at]
    sums = np.add.reduceat(hits[3], firsts) if len(firsts) else np.zeros(0)
    bounds = np.append(firsts, len(rows))
    return _Grouped(rows[firsts], documents[firsts], sums, bounds, hits)
