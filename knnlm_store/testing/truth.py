"""Made entries, and brute force over them in float64: the truth the suite compares with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from knnlm_store.values import Entries, Float32, Int64, Neighbours

DIMENSION = 8
FAR = 2**62
"""A document number as large as real ones, which are hashes of 63 bits."""


def batch(
    document: int, keys: Float32, tokens: Sequence[int] | Int64 | None = None, first: int = 0
) -> Entries:
    """Entries of one document: positions from `first`, tokens 0, 1, 2, ... unless given."""
    n = len(keys)
    return Entries(
        keys,
        np.arange(n, dtype=np.int64) if tokens is None else np.asarray(tokens, dtype=np.int64),
        np.full(n, document, np.int64),
        np.arange(first, first + n, dtype=np.int64),
    )


def line(n: int) -> Float32:
    """Keys 0, 1, 2, ... along the first axis: float32 `[n, DIMENSION]`."""
    keys = np.zeros((n, DIMENSION), np.float32)
    keys[:, 0] = np.arange(n)
    return keys


def clustered(n: int, seed: int) -> Float32:
    """Keys as language models give them: in clumps off the origin, every tenth one twice."""
    random = np.random.default_rng(seed)
    centres = random.normal(1.0, 2.0, (12, DIMENSION))
    keys = centres[random.integers(0, 12, n)] + random.normal(0, 0.2, (n, DIMENSION))
    keys[9::10] = keys[8::10][: len(keys[9::10])]
    return keys.astype(np.float32)


def squared_distances(queries: Float32, keys: Float32) -> NDArray[np.float64]:
    """Squared L2 between each query and each key: float64 `[q, n]`."""
    rows = [((keys.astype(np.float64) - q) ** 2).sum(axis=1) for q in queries.astype(np.float64)]
    return np.array(rows, dtype=np.float64).reshape(len(queries), len(keys))


def compare(
    found: Neighbours, allowed: Entries, queries: Float32, k: int, tolerance: float, recall: float
) -> None:
    """Assert that a search among `allowed` found what brute force finds."""
    assert_well_formed(found, len(queries), k)
    if not len(allowed):
        assert (found.tokens == -1).all(), "neighbours where none can be"
        return
    hit, column = _match(found, allowed)
    true = squared_distances(queries, allowed.keys)
    slack = tolerance * _square_sum(queries, allowed.keys)
    of_hits = np.take_along_axis(true, column, axis=1)
    off = np.where(hit, np.abs(found.distances - of_hits), 0)
    assert (off <= slack).all(), f"a squared distance is off by {off.max():.3g}"
    _assert_keys_belong(found, allowed, hit, column, tolerance)
    wanted = min(k, len(allowed))
    reach = np.sort(true, axis=1)[:, wanted - 1 : wanted] + slack
    near = found.distances[:, :wanted] <= reach
    assert near.mean() >= recall, f"{near.mean():.3f} of the true neighbours were found"


def assert_well_formed(found: Neighbours, rows: int, k: int) -> None:
    """Assert shapes, dtypes, order and padding of `rows` x `k` neighbours."""
    assert found.distances.dtype == np.float32
    assert found.distances.shape == (rows, k)
    for array in (found.tokens, found.documents, found.positions, found.ids):
        assert array.dtype == np.int64
        assert array.shape == (rows, k)
    assert not np.isnan(found.distances).any()
    assert (found.distances >= 0).all(), "a squared distance below 0"
    assert (found.distances[:, 1:] >= found.distances[:, :-1]).all(), "not ascending"
    blank = found.tokens < 0
    assert (np.isinf(found.distances) == blank).all(), "padding is +inf with token -1, together"
    for array in (found.tokens, found.documents, found.positions, found.ids):
        assert (array[blank] == -1).all(), "padding is -1"


def _match(found: Neighbours, allowed: Entries) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Tell hits from padding, and which entry each hit is; assert it is that entry, whole."""
    hit = found.tokens >= 0
    order = np.argsort(allowed.ids)
    ids = allowed.ids[order]
    column = order[np.minimum(np.searchsorted(ids, found.ids), len(ids) - 1)]
    for name in ("ids", "documents", "positions", "tokens"):
        wrong = hit & (getattr(allowed, name)[column] != getattr(found, name))
        assert not wrong.any(), f"{name} of a neighbour are of no entry that was to be found"
    for row, real in zip(found.ids, hit, strict=True):
        assert len(np.unique(row[real])) == real.sum(), "a neighbour stands twice in a row"
    return hit, column


def _assert_keys_belong(
    found: Neighbours,
    allowed: Entries,
    hit: NDArray[np.bool_],
    column: NDArray[np.intp],
    tolerance: float,
) -> None:
    """Assert that keys, if they came, are those of the neighbours beside them."""
    if found.keys is None:
        return
    assert found.keys.dtype == np.float32
    assert found.keys.shape == (*hit.shape, allowed.keys.shape[1])
    assert (found.keys[~hit] == 0).all(), "keys of padding are 0"
    assert_keys_equal(found.keys[hit], allowed.keys[column[hit]], tolerance)


def assert_keys_equal(read: Float32, written: Float32, tolerance: float) -> None:
    """Assert that keys came back as written, within a storage's tolerance."""
    largest = float(np.abs(written).max(initial=0))
    np.testing.assert_allclose(read, written, rtol=0, atol=tolerance * largest)


def _square_sum(queries: Float32, keys: Float32) -> NDArray[np.float64]:
    """|query|^2 + max |key|^2, the scale of rounding: float64 `[q, 1]`."""
    lengths = [(array.astype(np.float64) ** 2).sum(axis=1) for array in (queries, keys)]
    scale: NDArray[np.float64] = lengths[0][:, None] + lengths[1].max()
    return scale
