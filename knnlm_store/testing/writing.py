"""What upsert, delete and flush do to the entries."""

from __future__ import annotations

import time

import numpy as np
import pytest

from knnlm_store.backend import VectorBackend
from knnlm_store.testing.base import Base, write
from knnlm_store.testing.truth import DIMENSION, FAR, batch, clustered, line
from knnlm_store.values import MAX_ID, MAX_TOKEN, Entries, Freshness


class Writing(Base):
    """Tests of writes that must succeed."""

    def test_upsert_of_nothing(self, store: VectorBackend) -> None:
        """An empty batch is no error."""
        write(store, batch(FAR, line(0)))
        assert store.count() == 0

    def test_upsert_is_idempotent(self, store: VectorBackend) -> None:
        """The same batch twice leaves what one leaves."""
        entries = batch(FAR, clustered(30, seed=1))
        write(store, entries, entries)
        assert store.count() == 30
        self.check(store, entries, clustered(4, seed=2), k=50)

    def test_upsert_replaces_key_and_token(self, store: VectorBackend) -> None:
        """An id means its last entry only."""
        old = write(store, batch(FAR, line(10), tokens=range(10)))
        new = batch(FAR, line(30)[25:], tokens=range(70_000, 70_005), first=3)
        write(store, new)
        assert store.count() == 10
        kept = old[(old.positions < 3) | (old.positions >= 8)]
        now = Entries.concatenate([kept, new])
        self.check(store, now, line(30)[[4, 27]], k=12, with_keys=True)

    def test_caller_may_reuse_arrays(self, store: VectorBackend) -> None:
        """Ingest fills the same buffers again; a backend copies, and never writes into them."""
        entries = batch(FAR, clustered(20, seed=1))
        same = entries[np.arange(20)]
        entries.keys.flags.writeable = False
        store.upsert(entries)
        assert (entries.keys == same.keys).all()
        entries.keys.flags.writeable = True
        for array in (entries.keys, entries.tokens, entries.documents, entries.positions):
            array[:] = 1
        store.flush()
        self.check(store, same, clustered(3, seed=2))

    def test_strided_keys(self, store: VectorBackend) -> None:
        """Keys may be a view into something wider."""
        wide = np.tile(clustered(12, seed=1), 2)
        self.check(store, write(store, batch(FAR, wide[:, ::2])), clustered(3, seed=2))

    @pytest.mark.parametrize("document", [0, 1, 2**53 + 1, FAR, MAX_ID - 5], ids=str)
    def test_any_document_number(self, store: VectorBackend, document: int) -> None:
        """Numbers are int63, which a double or an int32 cannot hold."""
        entries = write(store, batch(document, line(5)))
        found = self.check(store, entries, line(1))
        assert found.ids[0].tolist() == [document + position for position in range(5)]
        assert store.count([document]) == 5

    def test_token_ids_are_uint32(self, store: VectorBackend) -> None:
        """Vocabularies exceed 65,535; int16 and int32 overflow."""
        tokens = [0, 32_767, 32_768, 65_535, 65_536, 151_936, 2**31 - 1, 2**31, MAX_TOKEN]
        entries = write(store, batch(FAR, line(9), tokens))
        assert self.check(store, entries, line(1), k=9).tokens[0].tolist() == tokens
        (scanned,) = store.scan()
        assert sorted(scanned.tokens.tolist()) == tokens

    def test_positions_may_have_gaps(self, store: VectorBackend) -> None:
        """A document's entries may start late, skip, and reach far."""
        entries = batch(FAR, line(4))
        entries.positions[:] = [3, 7, 70_000, 3_000_000_000]
        found = self.check(store, write(store, entries), line(1), k=4)
        assert found.positions[0].tolist() == [3, 7, 70_000, 3_000_000_000]

    def test_one_batch_of_many_documents(self, store: VectorBackend) -> None:
        """A batch may mix documents in any order."""
        parts = [batch(FAR + 100 * i, clustered(7, seed=i)) for i in range(20)]
        mixed = Entries.concatenate(parts)[np.random.default_rng(0).permutation(140)]
        self.check(store, write(store, mixed), clustered(5, seed=99), k=30)

    def test_large_batch(self, store: VectorBackend) -> None:
        """A batch beyond what vendors take at once is the adapter's to split."""
        entries = batch(FAR, clustered(5000, seed=1), np.arange(5000) % 97)
        write(store, entries)
        assert store.count() == 5000
        self.check(store, entries, clustered(3, seed=2), k=10)

    def test_delete_is_by_document(self, store: VectorBackend) -> None:
        """Other documents stay, neighbours in number above all: two ids apart is enough."""
        parts = [batch(FAR + 4 * i, line(3)) for i in range(4)]
        write(store, *parts)
        store.delete([FAR + 4])
        store.flush()
        left = Entries.concatenate([parts[0], parts[2], parts[3]])
        assert store.count() == 9
        assert store.count([FAR + 4]) == 0
        self.check(store, left, line(2), k=12)

    def test_delete_several_unknown_and_none(self, store: VectorBackend) -> None:
        """Unknown numbers are ignored, also among known ones; an empty list deletes nothing."""
        parts = [batch(FAR + 100 * i, line(3)) for i in range(3)]
        write(store, *parts)
        store.delete([])
        store.delete([5, FAR + 7])
        store.flush()
        assert store.count() == 9
        store.delete(np.array([FAR + 200, 5, FAR, FAR], dtype=np.int64))
        store.flush()
        self.check(store, parts[1], line(2), k=9)
        assert store.count() == 3

    def test_delete_many_at_once(self, store: VectorBackend) -> None:
        """Pruning names thousands of documents, more than a vendor's expression may hold."""
        kept = batch(FAR, line(3))
        write(store, kept, batch(10, line(2)))
        store.delete(np.arange(3000, dtype=np.int64) * 10)
        store.flush()
        self.check(store, kept, line(1))

    def test_deleted_document_may_return(self, store: VectorBackend) -> None:
        """The same ids, with other entries, are as good as new."""
        write(store, batch(FAR, line(6)))
        store.delete([FAR])
        back = write(store, batch(FAR, line(9)[5:], tokens=[9, 8, 7, 6]))
        assert store.count() == 4
        self.check(store, back, line(1), k=8)

    def test_versions_stand_side_by_side(self, store: VectorBackend) -> None:
        """A new version is written before the old one is deleted; then only it is left."""
        keys = clustered(25, seed=1)
        old, new = batch(FAR, keys), batch(FAR + 5_000_000, keys, tokens=range(50, 75))
        self.check(store, write(store, old, new), keys[:3], k=10)
        store.delete([FAR])
        store.flush()
        self.check(store, new, keys[:3], k=60)

    def test_count(self, store: VectorBackend) -> None:
        """Of all documents or of some."""
        assert store.count() == 0
        write(store, *(batch(FAR + 100 * i, line(i + 1)) for i in range(4)))
        assert store.count() == 10
        assert store.count([FAR]) == 1
        assert store.count([FAR + 300, FAR + 100, FAR + 100, 17]) == 6
        assert store.count([]) == 0

    def test_fast_search_lags_no_more_than_stated(self, store: VectorBackend) -> None:
        """After `staleness_bound` a fast search sees what was flushed, deletions too."""
        write(store, batch(FAR, line(4)), batch(FAR + 50, line(4)))
        store.delete([FAR])
        store.flush()
        time.sleep(self.adapter.staleness_bound)
        found = store.search(line(1), 8, freshness=Freshness.FAST)
        self.compare(store, found, batch(FAR + 50, line(4)), line(1), 8)

    def test_size_is_counted_or_unknown(self, store: VectorBackend) -> None:
        """Bytes, and more than none once keys are in."""
        write(store, batch(FAR, clustered(100, seed=1)))
        size = store.size()
        assert size is None or size >= 100 * DIMENSION
