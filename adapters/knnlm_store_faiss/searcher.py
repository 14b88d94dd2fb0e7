"""Answers searches over a snapshot: exactly while that is cheap, else through the index.

Distances are to the keys as stored, up to rounding. One thread at a time.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from knnlm_store import exact
from knnlm_store.values import DocumentFilter, Float32, Int64
from knnlm_store_faiss import indexcache
from knnlm_store_faiss.ivf import Bool, IvfIndex, Lists, Plan
from knnlm_store_faiss.snapshot import BLOCK_VALUES, Snapshot

_log = logging.getLogger(__name__)

_SAMPLE_SEED = 20
_LARGE_BATCH = 64  # queries
_MAX_RESIDENT = 2**30  # bytes of float32 keys that a large batch may keep in memory
_PRODUCT_SPEED = 10


class Searcher:
    """What is kept in memory to search one datastore, brought up to date at each search."""

    def __init__(self, folder: Path, exact_rows: int) -> None:
        """Search exactly up to `exact_rows` entries."""
        self._folder = folder
        self._exact_rows = exact_rows
        self._resident = _Resident()
        self._index: IvfIndex | None = None
        self._generation = 0
        self._told = False

    def search(
        self, snapshot: Snapshot, queries: Float32, k: int, within: DocumentFilter | None
    ) -> tuple[Float32, Int64]:
        """Find squared distances float32 and rows int64 `[q, <=k]`, unsorted; +inf, -1 for none."""
        passing, count = snapshot.passing(within)
        if not count:
            blank = np.empty((len(queries), 0))
            return blank.astype(np.float32), blank.astype(np.int64)
        if snapshot.live_count <= self._exact_rows:
            return self._in_memory(snapshot, queries, k, passing)
        index = self.index(snapshot) if count > self._exact_rows else None
        if index is not None and self._product_is_cheaper(index, snapshot, len(queries), k):
            return self._in_memory(snapshot, queries, k, passing)
        if index is not None:
            return index.search(queries, k, passing, count)
        if count > self._exact_rows and not self._told:
            self._told = True
            _log.warning(
                "%s has no index yet, so that every search reads all keys from disk; "
                "build one with: knnlm-store compact",
                self._folder,
            )
        rows = np.flatnonzero(passing)
        distances, places = exact.nearest(queries, snapshot.blocks(rows), k)
        return distances, np.where(places < 0, -1, rows[places])

    def _in_memory(
        self, snapshot: Snapshot, queries: Float32, k: int, passing: Bool
    ) -> tuple[Float32, Int64]:
        if not self._resident.outlives(snapshot):
            self._resident = _Resident()
        return self._resident.search(snapshot, queries, k, passing)

    @staticmethod
    def _product_is_cheaper(index: IvfIndex, snapshot: Snapshot, queries: int, k: int) -> bool:
        """Whether one matrix product over all keys beats reading lists, query by query.

        It is exact besides. Measured at 576 dimensions on two cores: a product passes over ten
        keys in the time that a list is read for one.
        """
        size = 4 * snapshot.live_count * snapshot.state.spec.dimension
        if queries < _LARGE_BATCH or size > _MAX_RESIDENT:
            return False
        return index.share_read(k, snapshot.live_count) > 1 / _PRODUCT_SPEED

    def index(self, snapshot: Snapshot) -> IvfIndex | None:
        """The index over all rows of `snapshot`; None while none was built."""
        if snapshot.state.generation != self._generation:
            self._index, self._generation = None, snapshot.state.generation
        if self._index is None and snapshot.state.indexed:
            self._index = _restored(self._folder, snapshot)
        if self._index is not None:
            _extend(self._index, snapshot)
        return self._index

    def adopt(self, index: IvfIndex, generation: int) -> None:
        """Search data files of `generation` through `index` from now on."""
        self._index, self._generation = index, generation


class _Resident:
    """Live keys of a small datastore as float32, with their squared norms."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._rows = np.empty(0, np.int64)
        self._keys = np.empty((0, 0), np.float32)
        self._norms = np.empty(0, np.float32)

    def outlives(self, snapshot: Snapshot) -> bool:
        """Whether to go on with what is held: the same files, and most rows of it still live."""
        if self._snapshot is None or self._snapshot is snapshot:
            return True
        if self._snapshot.state.generation != snapshot.state.generation:
            return False
        return 2 * int(np.count_nonzero(snapshot.live[self._rows])) >= len(self._rows)

    def search(
        self, snapshot: Snapshot, queries: Float32, k: int, passing: Bool
    ) -> tuple[Float32, Int64]:
        """Search the rows `passing`."""
        if self._snapshot is not snapshot:
            self._follow(snapshot)
        n = len(self._rows)
        allowed = passing[self._rows]
        block = (0, self._keys[:n], self._norms[:n])
        distances, places = exact.nearest(queries, [block], k, None if allowed.all() else allowed)
        return distances, np.where(places < 0, -1, self._rows[places])

    def _follow(self, snapshot: Snapshot) -> None:
        """Take in the rows that came after those of the snapshot before."""
        seen = 0 if self._snapshot is None else self._snapshot.state.rows
        new = np.flatnonzero(snapshot.live[seen:]) + seen
        held = len(self._rows)
        self._reserve(held + len(new), snapshot.state.spec.dimension)
        for start, keys, _ in snapshot.blocks(new):
            place = slice(held + start, held + start + len(keys))
            self._keys[place], self._norms[place] = keys, exact.squared_norms(keys)
        self._rows = np.concatenate([self._rows, new])
        self._snapshot = snapshot

    def _reserve(self, rows: int, dimension: int) -> None:
        """Have room for `rows` keys, and for some more once it had to grow."""
        held = len(self._norms)
        if rows <= held:
            return
        room = rows if not held else max(rows, held + held // 2)
        keys, norms = np.empty((room, dimension), np.float32), np.empty(room, np.float32)
        keys[:held], norms[:held] = self._keys[:held].reshape(held, dimension), self._norms
        self._keys, self._norms = keys, norms


def trained(snapshot: Snapshot) -> IvfIndex:
    """Train an index on the entries and fill it."""
    spec = snapshot.state.spec
    plan = Plan.of(snapshot.live_count, spec)
    live = np.flatnonzero(snapshot.live)
    rng = np.random.default_rng(_SAMPLE_SEED)
    sample = np.sort(rng.choice(live, plan.sample, replace=False, shuffle=False))
    index = IvfIndex.train(plan, spec, snapshot.keys(sample))
    _extend(index, snapshot)
    return index


def _restored(folder: Path, snapshot: Snapshot) -> IvfIndex:
    """Open the saved index, or train another if it is no good."""
    state = snapshot.state
    try:
        index, lists = indexcache.load(folder, state.generation, state.rows)
    except indexcache.CacheUnusable as error:
        _log.warning("The saved index of %s is unusable (%s); building it again.", folder, error)
        return trained(snapshot)
    _extend(index, snapshot, lists)
    return index


def _extend(index: IvfIndex, snapshot: Snapshot, known: Lists | None = None) -> None:
    """Append the rows that `index` lacks; `known` holds lists of the first rows, uint16 `[n]`."""
    size = max(1, BLOCK_VALUES // snapshot.state.spec.dimension)
    ends = [snapshot.state.rows] if known is None else [len(known), snapshot.state.rows]
    for end in ends:
        while index.rows < end:
            part = slice(index.rows, min(end, index.rows + size))
            keys = snapshot.keys(part)
            listed = known is not None and part.stop <= len(known)
            lists = known[part] if known is not None and listed else None
            index.extend(keys, index.assign(keys, snapshot.live[part]) if lists is None else lists)
