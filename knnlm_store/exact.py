"""Exact search by brute force, shared by the backends that keep keys in this process.

Distances come from ||q||^2 + ||x||^2 - 2 q.x, one matrix product a block of keys: rounding is
some 1e-6 of the squared norms.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from numpy.typing import NDArray

from knnlm_store.values import Float32, Int64

_ROWS_A_THREAD = 64
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
    lengths = squared_norms(queries)[:, None]
    for first, keys, norms in blocks:
        rows_a_block = max(1, _MAX_CELLS // max(1, len(queries)))
        for start in range(0, len(keys), rows_a_block):
            part = slice(start, min(start + rows_a_block, len(keys)))
            length = squared_norms(keys[part]) if norms is None else norms[part]
            distances = queries @ keys[part].T
            distances *= -2
            distances += length
            mask = None if allowed is None else allowed[first + part.start : first + part.stop]
            if mask is not None:
                distances[:, ~mask] = np.inf
            columns = _smallest(distances, k)
            d = np.take_along_axis(distances, columns, axis=1)
            best_d = np.concatenate([best_d, d], axis=1)
            best_r = np.concatenate([best_r, columns + (first + part.start)], axis=1)
            if best_d.shape[1] > k:
                columns = _smallest(best_d, k)
                best_d = np.take_along_axis(best_d, columns, axis=1)
                best_r = np.take_along_axis(best_r, columns, axis=1)
    best_r[np.isinf(best_d)] = -1
    return best_d + lengths, best_r


def _smallest(distances: Float32, k: int) -> Int64:
    """Columns of the k smallest values of each row, unsorted: int64 `[q, min(k, n)]`."""
    rows, width = distances.shape
    if k >= width:
        return np.broadcast_to(np.arange(width), (rows, width))

    def part(of: Float32) -> Int64:
        return np.argpartition(of, k - 1, axis=1)[:, :k]

    if rows < 2 * _ROWS_A_THREAD:
        return part(distances)
    pieces = np.array_split(distances, rows // _ROWS_A_THREAD)
    return np.concatenate(list(_pool().map(part, pieces)))


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads for argpartition, which releases the GIL."""
    return ThreadPoolExecutor(thread_name_prefix="knnlm-exact")
