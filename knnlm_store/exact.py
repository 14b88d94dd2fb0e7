"""Exact search by brute force, shared by the backends that keep keys in this process.

Distances come from ||q||^2 + ||x||^2 - 2 q.x, one matrix product a block of keys: rounding is
some 1e-6 of the squared norms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from numpy.typing import NDArray

from knnlm_store.values import Float32, Int64

_ROWS_A_TASK = 32
_SAMPLE = 16  # one column in so many is looked at for a bound
_MAX_CELLS = 64 * 1024 * 1024  # float32 distances held at once: 256 MB


def squared_norms(keys: Float32) -> Float32:
    """Squared length of each row: float32 `[n, d]` to float32 `[n]`."""
    norms: Float32 = np.einsum("nd,nd->n", keys, keys)
    return norms


def nearest(
    queries: Float32,
    blocks: Iterable[tuple[int, Float32, Float32 | None]],
    k: int,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[Float32, Int64]:
    """Find the k nearest rows of each query among blocks of keys.

    queries: float32 `[q, d]`. blocks: (number of the first row, keys float32 `[n, d]`, their
    squared norms or None). allowed: bool over row numbers; a row outside is never returned.
    Returns squared distances float32 and row numbers int64, `[q, <=k]`, unsorted; a place with
    no row holds +inf and -1.
    """
    best_d = np.empty((len(queries), 0), np.float32)
    best_r = np.empty((len(queries), 0), np.int64)
    doubled = -2 * queries
    for first, keys, norms in blocks:
        rows_a_block = max(1, _MAX_CELLS // max(1, len(queries)))
        for start in range(0, len(keys), rows_a_block):
            part = slice(start, min(start + rows_a_block, len(keys)))
            offsets = squared_norms(keys[part]) if norms is None else norms[part]
            if allowed is not None:
                inside = allowed[first + part.start : first + part.stop]
                offsets = np.where(inside, offsets, np.float32(np.inf))
            d, columns = _smallest(doubled @ keys[part].T, offsets, k)
            best_d = np.concatenate([best_d, d], axis=1)
            best_r = np.concatenate([best_r, columns + (first + part.start)], axis=1)
            if best_d.shape[1] > k:
                columns = np.argpartition(best_d, k - 1, axis=1)[:, :k]
                best_d = np.take_along_axis(best_d, columns, axis=1)
                best_r = np.take_along_axis(best_r, columns, axis=1)
    best_r[np.isinf(best_d)] = -1
    return best_d + squared_norms(queries)[:, None], best_r


def _smallest(products: Float32, offsets: Float32, k: int) -> tuple[Float32, Int64]:
    """The k smallest of products + offsets in each row, unsorted, and their columns.

    products: float32 `[q, n]`, overwritten. offsets: float32 `[n]`. Gives float32 and int64
    `[q, min(k, n)]`.
    """
    rows, width = products.shape
    values = np.empty((rows, min(k, width)), np.float32)
    columns = np.empty(values.shape, np.int64)

    def work(part: slice) -> None:
        for row in range(part.start, min(part.stop, rows)):
            # row by row, so that what one step wrote is still in the cache for the next
            line = products[row]
            line += offsets
            columns[row] = _select(line, k)
            values[row] = line[columns[row]]

    parts = [slice(start, start + _ROWS_A_TASK) for start in range(0, rows, _ROWS_A_TASK)]
    run = map if len(parts) == 1 else _pool().map
    list(run(work, parts))
    return values, columns


def _select(line: Float32, k: int) -> Int64:
    """Columns of the k smallest values of a row, `[n]` to int64 `[min(k, n)]`.

    Most columns of a long row are beyond a bound and cost a comparison only: the value below
    which a sample of them holds somewhat more than its share of k. If that proves too tight the
    row is partitioned whole.
    """
    if k >= len(line):
        return np.arange(len(line))
    near = None
    if len(line) > 2 * _SAMPLE * k:
        sample = line[::_SAMPLE]
        share = k // _SAMPLE + 2 * math.isqrt(k // _SAMPLE) + 4
        if share < len(sample):
            near = np.flatnonzero(line <= np.partition(sample, share)[share])
    if near is None or len(near) < k:
        return np.argpartition(line, k - 1)[:k]
    if len(near) == k:
        return near
    return near[np.argpartition(line[near], k - 1)[:k]]


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads for comparing and partitioning, which release the GIL."""
    return ThreadPoolExecutor(thread_name_prefix="knnlm-exact")
