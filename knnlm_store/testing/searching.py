"""What a search without a filter finds."""

from __future__ import annotations

import numpy as np
import pytest

from knnlm_store.backend import VectorBackend
from knnlm_store.testing.base import Base, write
from knnlm_store.testing.truth import (
    FAR,
    assert_well_formed,
    batch,
    clustered,
    line,
    squared_distances,
)
from knnlm_store.values import Entries


class Searching(Base):
    """Tests of neighbours, distances, order and padding."""

    def test_distances_are_squared(self, store: VectorBackend) -> None:
        """Points 0, 1, 2, 3 on a line are 0, 1, 4, 9 away from the first."""
        entries = write(store, batch(FAR, line(4)[[2, 0, 3, 1]], tokens=[2, 0, 3, 1]))
        found = self.check(store, entries, line(1), k=4)
        assert found.tokens[0].tolist() == [0, 1, 2, 3]
        allowed = 9 * self.tolerance[store.spec().storage]
        np.testing.assert_allclose(found.distances[0], [0, 1, 4, 9], atol=allowed)

    @pytest.mark.parametrize("k", [1, 2, 10, 64])
    def test_neighbours_are_the_nearest(self, store: VectorBackend, k: int) -> None:
        """In clumps with duplicates, as brute force finds them."""
        entries = write(store, batch(FAR, clustered(400, seed=1)))
        self.check(store, entries, clustered(20, seed=2), k)

    def test_queries_that_are_keys(self, store: VectorBackend) -> None:
        """Distance 0 comes first, and rounding never takes it below."""
        keys = clustered(200, seed=1) * 30
        found = self.check(store, write(store, batch(FAR, keys)), keys[:50], k=3)
        scale = self.tolerance[store.spec().storage] * 2 * float((keys**2).sum(axis=1).max())
        assert (found.distances[:, 0] <= scale).all()

    def test_keys_far_from_the_origin(self, store: VectorBackend) -> None:
        """Hidden states have large means; distances stay L2, not angles or inner products."""
        keys = clustered(200, seed=1) + np.float32(25)
        entries = write(store, batch(FAR, np.concatenate([keys, keys * 3])))
        self.check(store, entries, keys[::20], k=7)

    def test_queries_may_be_far_from_all_keys(self, store: VectorBackend) -> None:
        """As far as float32 squares reach, distances are numbers."""
        entries = write(store, batch(FAR, clustered(20, seed=1)))
        self.check(store, entries, clustered(3, seed=2) * np.float32(1e15))

    def test_equal_keys_are_all_found(self, store: VectorBackend) -> None:
        """A thousand duplicates are a thousand entries."""
        keys = np.tile(clustered(1, seed=1), (50, 1))
        found = self.check(store, write(store, batch(FAR, keys)), keys[:2], k=50)
        assert sorted(found.tokens[0].tolist()) == list(range(50))

    def test_more_wanted_than_there_are(self, store: VectorBackend) -> None:
        """The rest of a row is padding."""
        entries = write(store, batch(FAR, line(3)))
        found = self.check(store, entries, line(2), k=10, with_keys=True)
        assert (found.tokens[:, 3:] == -1).all()
        assert (found.tokens[:, :3] >= 0).all()

    @pytest.mark.parametrize("with_keys", [False, True])
    def test_empty_store(self, store: VectorBackend, with_keys: bool) -> None:
        """Rows of padding, with keys of padding if asked."""
        found = store.search(line(3), 4, with_keys=with_keys)
        assert_well_formed(found, 3, 4)
        assert (found.tokens == -1).all()
        assert (found.keys is None) != with_keys
        assert found.keys is None or (found.keys.shape == (3, 4, 8) and not found.keys.any())

    @pytest.mark.parametrize("with_keys", [False, True])
    def test_no_queries(self, store: VectorBackend, with_keys: bool) -> None:
        """No rows, of the right shapes."""
        write(store, batch(FAR, line(3)))
        found = store.search(line(0), 4, with_keys=with_keys)
        assert_well_formed(found, 0, 4)
        assert (found.keys is None) != with_keys
        assert found.keys is None or found.keys.shape == (0, 4, 8)

    def test_many_queries(self, store: VectorBackend) -> None:
        """A batch beyond what vendors take at once is the adapter's to split."""
        entries = write(store, batch(FAR, clustered(300, seed=1)))
        self.check(store, entries, clustered(300, seed=2), k=8)

    def test_k_1024(self, store: VectorBackend) -> None:
        """The k of the papers."""
        entries = write(store, batch(FAR, clustered(1300, seed=1), np.arange(1300) % 90))
        self.check(store, entries, clustered(3, seed=2), k=1024)

    def test_a_query_does_not_depend_on_its_batch(self, store: VectorBackend) -> None:
        """One by one or together, in any layout, distances are the same."""
        write(store, batch(FAR, clustered(200, seed=1)))
        queries = clustered(20, seed=2)
        together = store.search(queries, 6).distances
        alone = np.concatenate([store.search(q[None], 6).distances for q in queries])
        strided = store.search(np.asfortranarray(queries), 6).distances
        scale = (queries**2).sum(axis=1, keepdims=True) * 2
        for other in (alone, strided):
            assert (np.abs(together - other) <= self.tolerance["float32"] * scale).all()

    def test_queries_are_left_alone(self, store: VectorBackend) -> None:
        """The caller's array is not normalised in place, nor need it be writeable."""
        entries = write(store, batch(FAR, clustered(20, seed=1)))
        queries = clustered(5, seed=2)
        before = queries.copy()
        queries.flags.writeable = False
        self.check(store, entries, queries)
        assert (queries == before).all()

    def test_keys_come_with_their_neighbours(self, store: VectorBackend) -> None:
        """On request, each as it was written, within the storage's tolerance."""
        parts = [batch(FAR + 1000 * i, clustered(60, seed=i)) for i in range(3)]
        entries = write(store, *parts)
        found = self.check(store, entries, clustered(6, seed=9), k=20, with_keys=True)
        assert found.keys is not None
        own = np.stack(
            [
                squared_distances(q[None], x)[0]
                for q, x in zip(clustered(6, seed=9), found.keys, strict=True)
            ]
        )
        scale = (
            self.tolerance[store.spec().storage] * 2 * float((entries.keys**2).sum(axis=1).max())
        )
        np.testing.assert_allclose(own, found.distances, rtol=0, atol=scale)

    def test_deadline_that_is_kept_changes_nothing(self, store: VectorBackend) -> None:
        """A timeout bounds the call, not its answer."""
        entries = write(store, batch(FAR, clustered(50, seed=1)))
        found = store.search(clustered(3, seed=2), 5, timeout=60.0)
        self.compare(store, found, entries, clustered(3, seed=2), 5)

    def test_next_entry_is_id_plus_one(self, store: VectorBackend) -> None:
        """Pointers and drafts follow a document by counting; its last entry leads nowhere."""
        first, second = batch(FAR, clustered(10, seed=1)), batch(FAR + 11, clustered(10, seed=2))
        both = Entries.concatenate([first, second])
        found = self.check(store, write(store, both), first.keys[:1], k=20)
        ids, last = found.ids[found.tokens >= 0], found.positions[found.tokens >= 0] == 9
        assert np.isin(ids[~last] + 1, both.ids).all()
        assert not np.isin(ids[last] + 1, both.ids).any()
