from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from knnlm_store import exact
from knnlm_store.exact import nearest, squared_norms
from knnlm_store.values import check_vectors

Blocks = list[tuple[int, NDArray[np.float32], NDArray[np.float32] | None]]


def some(n: int, d: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(1, 2, (n, d)).astype(np.float32)


def in_blocks(keys: NDArray[np.float32], size: int, norms: bool) -> Blocks:
    starts = range(0, len(keys), size)
    parts = [(start, keys[start : start + size]) for start in starts]
    return [(start, part, squared_norms(part) if norms else None) for start, part in parts]


def check(
    queries: NDArray[np.float32],
    keys: NDArray[np.float32],
    blocks: Blocks,
    k: int,
    allowed: NDArray[np.bool_] | None = None,
) -> None:
    """Distances are the k smallest among the allowed, and each is its row's own."""
    distances, rows = nearest(queries, iter(blocks), k, allowed)
    true = ((queries[:, None].astype(np.float64) - keys.astype(np.float64)) ** 2).sum(axis=2)
    if allowed is not None:
        true[:, ~allowed] = np.inf
    slack = 1e-5 * (float(squared_norms(keys).max(initial=0)) + float(squared_norms(queries).max()))
    wanted = np.sort(true, axis=1)[:, :k]
    assert distances.shape == rows.shape == wanted.shape
    order = np.argsort(distances, axis=1)
    np.testing.assert_allclose(np.take_along_axis(distances, order, 1), wanted, rtol=0, atol=slack)
    assert ((rows == -1) == np.isinf(distances)).all()
    for row, d, truth in zip(rows, distances, true, strict=True):
        real = row >= 0
        assert len(set(row[real])) == real.sum()
        np.testing.assert_allclose(d[real], truth[row[real]], rtol=0, atol=slack)


@settings(deadline=None)
@given(
    n=st.integers(0, 60),
    d=st.integers(1, 9),
    q=st.integers(1, 5),
    k=st.integers(1, 70),
    size=st.integers(1, 70),
    norms=st.booleans(),
    share=st.none() | st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_nearest_is_brute_force(
    n: int, d: int, q: int, k: int, size: int, norms: bool, share: float | None, seed: int
) -> None:
    keys = some(n, d, seed)
    keys[1::3] = keys[: len(keys[1::3])]  # ties
    allowed = None if share is None else np.random.default_rng(seed).random(n) < share
    check(some(q, d, seed + 100), keys, in_blocks(keys, size, norms), k, allowed)


@pytest.mark.parametrize("queries", [127, 128, 300])
def test_many_queries_are_split_over_threads(queries: int) -> None:
    keys = some(500, 6, seed=1)
    check(some(queries, 6, seed=2), keys, in_blocks(keys, 200, norms=True), k=9)


def test_large_blocks_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_MAX_CELLS", 64)
    keys = some(200, 5, seed=1)
    allowed = np.arange(200) % 3 > 0
    for norms in (True, False):
        check(some(7, 5, seed=2), keys, in_blocks(keys, 90, norms), k=11, allowed=allowed)
        check(some(100, 5, seed=2), keys, in_blocks(keys, 90, norms), k=1)


def test_no_blocks_at_all() -> None:
    distances, rows = nearest(some(3, 5, seed=1), [], k=4)
    assert distances.shape == rows.shape == (3, 0)


def test_equal_keys_are_told_apart() -> None:
    keys = np.ones((40, 3), np.float32)
    _, rows = nearest(keys[:2], in_blocks(keys, 7, norms=False), k=40)
    assert sorted(rows[1].tolist()) == list(range(40))


def test_inputs_are_left_alone() -> None:
    queries, keys = some(3, 4, seed=1), some(20, 4, seed=2)
    before = queries.copy(), keys.copy()
    nearest(queries, in_blocks(keys, 8, norms=True), k=5, allowed=np.arange(20) > 3)
    assert (queries == before[0]).all()
    assert (keys == before[1]).all()


def test_largest_keys_that_pass_the_check_have_distances() -> None:
    keys = np.array([[4e18] * 4, [-4e18] * 4], np.float32)
    check_vectors(keys, "Keys")
    distances, rows = nearest(keys, in_blocks(keys, 2, norms=True), k=2)
    assert np.isfinite(distances).all()
    assert (rows >= 0).all()
