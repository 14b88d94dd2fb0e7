"""Recall, measured on searches whose recall is known, against a brute force of another make."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from knnlm_store import recall
from knnlm_store.datastore import Datastore
from knnlm_store.values import Entries, Float32, Int64
from tests.doctor_support import (
    APART,
    DIMENSION,
    brute_force,
    contents,
    entries,
    filled,
)
from tests.faiss_support import Early, clustered, created


def batches(held: Entries, size: int = 100, seed: int = 0) -> Iterator[Entries]:
    """The entries in batches, in an order of no meaning."""
    shuffled = held[np.random.default_rng(seed).permutation(len(held))]
    for start in range(0, len(held), size):
        yield shuffled[start : start + size]


# -- drawing ---------------------------------------------------------------------------------------


def test_every_entry_is_as_likely() -> None:
    held = entries(clustered(100, 4, seed=1), APART)
    drawn = np.zeros(100)
    for seed in range(2000):
        chosen = recall.choose((held[i : i + 7] for i in range(0, 100, 7)), 10, seed)
        assert chosen is not None
        assert len(np.unique(chosen.ids)) == 10
        drawn[chosen.positions] += 1
    assert 140 < drawn.min() <= drawn.max() < 260  # 200 expected, 13 of deviation


def test_a_seed_draws_the_same_again() -> None:
    held = entries(clustered(1000, 4, seed=1), APART)

    def drawn(seed: int) -> list[int]:
        chosen = recall.choose(batches(held), 20, seed)
        assert chosen is not None
        np.testing.assert_array_equal(chosen.keys, held.keys[chosen.positions])
        return [int(i) for i in chosen.ids]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


@pytest.mark.parametrize(("there", "expected"), [(3, 3), (10, 10), (25, 10)])
def test_fewer_entries_than_wanted(there: int, expected: int) -> None:
    held = entries(clustered(there, 4, seed=1), APART)
    chosen = recall.choose(batches(held, 4), 10, 0)
    assert chosen is not None
    assert len(np.unique(chosen.ids)) == expected
    assert recall.choose(iter(()), 10, 0) is None


def test_keys_are_read_for_what_was_drawn(tmp_path: Path) -> None:
    with Datastore.open(filled(tmp_path, 300, 200, 100)) as store:
        chosen = recall.choose(store.backend.scan(batch_size=64), 30, 0)
        assert chosen is not None
        assert chosen.keys.shape == (30, 0)
        held = {int(i): key for batch in store.backend.scan(with_keys=True)
                for i, key in zip(batch.ids, batch.keys, strict=True)}  # fmt: skip
        read = recall.with_keys(store.backend, chosen)
        assert sorted(read.ids) == sorted(chosen.ids)
        for i, key in zip(read.ids, read.keys, strict=True):
            np.testing.assert_array_equal(key, held[int(i)])
        store.backend.delete([2 * APART])
        left = recall.with_keys(store.backend, chosen)
        assert set(left.documents) == {APART, 3 * APART}


# -- measuring -------------------------------------------------------------------------------------


def true_ids(queries: Float32, held: Entries, k: int) -> Int64:
    ids: Int64 = held.ids[np.argsort(brute_force(queries, held), axis=1)[:, :k]]
    return ids


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("lost", [0, 1, 17, 50])
def test_a_known_share_is_lost(lost: int, offset: float) -> None:
    """Also far from the origin, where squared lengths are 6000 times the distances."""
    held = entries(clustered(2000, DIMENSION, seed=1) + np.float32(offset), APART)
    queries = held.keys[::100]
    found = true_ids(queries, held, 50)
    rest = true_ids(queries, held, 2000)[:, 51:]
    random = np.random.default_rng(lost)
    for row in range(len(found)):
        found[row, random.choice(50, lost, replace=False)] = rest[row, :lost]
    shares, seen = recall.recalls(queries, {50: random.permuted(found, axis=1)}, batches(held))
    assert shares == {50: pytest.approx(1 - lost / 50, abs=1e-9)}
    assert seen == 2000


def test_several_k_at_once() -> None:
    held = entries(clustered(1000, DIMENSION, seed=1), APART)
    queries = held.keys[:20]
    small, large = true_ids(queries, held, 4), true_ids(queries, held, 40)
    small[:, 0] = -1
    large[:, :10] = true_ids(queries, held, 1000)[:, -10:]
    shares, _ = recall.recalls(queries, {4: small, 40: large}, batches(held))
    assert shares == {4: 0.75, 40: 0.75}


def test_ids_that_do_not_count() -> None:
    """One that stands twice counts once; one that is no entry's, and padding, not at all."""
    held = entries(clustered(500, DIMENSION, seed=1), APART)
    queries = held.keys[:5]
    found = true_ids(queries, held, 8)
    found[:, 1] = found[:, 0]
    found[:, 2] = 77
    found[:, 3] = -1
    assert recall.recalls(queries, {8: found}, batches(held))[0] == {8: 5 / 8}


def test_ties_are_as_good() -> None:
    """Of a thousand equal keys no search can know which to return."""
    keys = np.repeat(clustered(20, DIMENSION, seed=1), 50, axis=0)
    held = entries(keys, APART)
    queries = keys[::50]
    first, last = (
        np.stack([held.ids[50 * i + j : 50 * i + j + 10] for i in range(20)]) for j in (0, 40)
    )
    for found in (first, last):
        assert recall.recalls(queries, {10: found}, batches(held))[0] == {10: 1.0}
    assert recall.recalls(queries, {10: np.roll(first, 1, axis=0)}, batches(held))[0] == {10: 0.0}


def test_fewer_entries_than_k() -> None:
    held = entries(clustered(30, DIMENSION, seed=1), APART)
    queries = held.keys[:4]
    found = np.full((4, 64), -1, np.int64)
    found[:, :15] = true_ids(queries, held, 15)
    assert recall.recalls(queries, {64: found}, batches(held))[0] == {64: 0.5}
    assert recall.recalls(queries, {64: found}, iter(())) == ({64: 0.0}, 0)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_an_approximate_index(storage: str, tmp_path: Path) -> None:
    """Searches that really miss: the share is the brute force's, query by query."""
    keys = np.random.default_rng(0).normal(size=(3000, DIMENSION)).astype(np.float32)
    early = created(tmp_path / "law", storage, kind=Early)
    early.upsert(entries(keys, APART))
    early.build_index()
    assert early.describe_index().startswith("IVF")
    held = contents(early)
    queries = held.keys[::20]
    ids = np.concatenate([early.search(q[None], 100).ids for q in queries])
    distances = brute_force(queries, held)
    radius = np.sort(distances, axis=1)[:, 99:100]
    right = [
        (row[np.isin(held.ids, own)] <= limit * (1 + 1e-4)).sum() / 100
        for row, own, limit in zip(distances, ids, radius, strict=True)
    ]
    assert 0.9 < np.mean(right) < 0.98
    shares, _ = recall.recalls(queries, {100: ids}, early.scan(with_keys=True))
    assert shares[100] == pytest.approx(np.mean(right), abs=5e-4)  # more ties
    early.close()


def test_memory_is_bounded() -> None:
    """32 MB of keys pass by; what is held does not grow with them."""

    def generated(count: int) -> Iterator[Entries]:
        random = np.random.default_rng(1)
        for number in range(count):
            keys = random.normal(size=(1000, 64)).astype(np.float32)
            yield entries(keys, number * APART)

    def peak(count: int) -> int:
        queries = next(generated(1)).keys[:8]
        found = {100: np.tile(np.arange(100, dtype=np.int64), (8, 1))}
        tracemalloc.start()
        shares, seen = recall.recalls(queries, found, generated(count))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seen == 1000 * count
        assert 0 < shares[100] < 1
        return most

    few, many = peak(4), peak(128)
    assert many < 1.5 * few < 8_000_000
