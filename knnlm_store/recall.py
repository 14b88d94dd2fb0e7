"""How many of the truly nearest entries a search finds, measured against brute force.

The entries pass by once, in batches: memory is bounded by the queries and k, not by the datastore.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from knnlm_store import exact
from knnlm_store.backend import VectorBackend
from knnlm_store.values import Entries, Float32, Int64

_TIE = 1e-4  # so much farther than the k-th neighbour, relatively, is as near
_ROUNDING = 4e-6  # of a distance by products, relative to the squared lengths
_PAIR_FLOATS = 4 * 1024 * 1024  # float32 differences held at once: 16 MB


def choose(batches: Iterable[Entries], size: int, seed: int) -> Entries | None:
    """Draw `size` entries at random, each as likely as any, in one pass (a reservoir).

    Fewer where there are fewer; None where there are none.
    """
    random = np.random.default_rng(seed)
    chosen: Entries | None = None
    seen = 0
    for batch in batches:
        pool = batch if chosen is None else Entries.concatenate([chosen, batch])
        kept = np.arange(min(size, len(pool)))
        rest = np.arange(len(kept), len(pool))
        # the n-th entry takes a place with probability size / n; a later one may take it again
        places = random.integers(0, rest + 1 + seen - (len(pool) - len(batch)))
        kept[places[places < size]] = rest[places < size]
        chosen = pool[kept]
        seen += len(batch)
    return chosen


def with_keys(backend: VectorBackend, chosen: Entries) -> Entries:
    """Read the keys of entries that were scanned without; those that are gone are left out."""
    found = []
    missing = len(chosen)
    for batch in backend.scan(with_keys=True, documents=chosen.documents):
        part = batch[np.isin(batch.ids, chosen.ids)]
        found.append(part)
        missing -= len(part)
        if not missing:
            break
    return Entries.concatenate(found) if found else chosen[:0]


def recalls(
    queries: Float32, found: Mapping[int, Int64], batches: Iterable[Entries]
) -> tuple[dict[int, float], int]:
    """Measure what share of the k nearest entries searches found, for several k at once.

    queries: float32 `[q, d]`. found: entry ids int64 `[q, k]` that a search for k gave, -1 for
    none. batches: all entries, with keys. An id counts if its entry is as near as the true k-th
    neighbour, ties included, however far the search said it was. Gives recall by k, and how many
    entries there were.
    """
    centre = queries.mean(axis=0)  # distances stay, and rounding shrinks with the lengths
    once = [_without_repeats(ids) for ids in found.values()]
    returned = _Returned(queries, np.concatenate(once, axis=1))
    seen = 0

    def blocks() -> Iterator[tuple[int, Float32, None]]:
        nonlocal seen
        for batch in batches:
            returned.meet(batch)
            yield seen, batch.keys - centre, None
            seen += len(batch)

    nearest, _ = exact.nearest(queries - centre, blocks(), max(found))
    nearest.sort(axis=1)
    lengths = exact.squared_norms(queries - centre)
    shares, column = {}, 0
    for k in found:
        own = returned.distances[:, column : column + k]
        column += k
        shares[k] = _share(own, nearest[:, :k], lengths)
    return shares, seen


def _share(own: Float32, nearest: Float32, lengths: Float32) -> float:
    """Share of the nearest, `[q, <=k]` ascending, that searches found at distances `[q, k]`."""
    if not nearest.shape[1]:
        return 0.0
    radius = np.maximum(nearest[:, -1:], 0)
    farthest = (np.sqrt(lengths[:, None]) + np.sqrt(radius)) ** 2  # bounds the entry's length
    limit = radius * (1 + _TIE) + _ROUNDING * (lengths[:, None] + farthest)
    right = np.count_nonzero(own <= limit, axis=1)
    return float(np.mean(np.minimum(right / nearest.shape[1], 1)))


def _without_repeats(ids: Int64) -> Int64:
    """Put -1 for an id that stands in its row already; rows lose their order."""
    ordered = np.sort(ids, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    return ordered


class _Returned:
    """Entries that searches returned, and their true distances, as a scan meets them.

    ids: int64 `[q, m]`, -1 for none. distances: float32 `[q, m]`, squared L2, +inf until met.
    """

    def __init__(self, queries: Float32, ids: Int64) -> None:
        self._queries = queries
        self.distances: Float32 = np.full(ids.shape, np.inf, np.float32)
        flat = ids.ravel()
        self._order = np.argsort(flat, kind="stable")
        self._sorted = flat[self._order]

    def meet(self, batch: Entries) -> None:
        """Note the distances of those that are in a batch of entries with keys."""
        by_id = np.argsort(batch.ids)
        ids = batch.ids[by_id]
        places = np.minimum(np.searchsorted(ids, self._sorted), len(ids) - 1)
        met = np.flatnonzero(ids[places] == self._sorted)
        step = max(1, _PAIR_FLOATS // batch.keys.shape[1])
        for start in range(0, len(met), step):
            part = met[start : start + step]
            cells = self._order[part]
            rows, columns = np.divmod(cells, self.distances.shape[1])
            keys = batch.keys[by_id[places[part]]]
            off: Float32 = np.subtract(keys, self._queries[rows])
            self.distances[rows, columns] = exact.squared_norms(off)
