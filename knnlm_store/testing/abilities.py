"""What some backends can do besides: build an index, compact."""

from __future__ import annotations

import pytest

from knnlm_store.backend import Compactable, Indexed
from knnlm_store.testing.base import Base, Scratch, write
from knnlm_store.testing.truth import FAR, batch, clustered
from knnlm_store.values import DocumentFilter, Entries

QUERIES = clustered(10, seed=99)


class Abilities(Base):
    """Tests of optional abilities, skipped where the backend does not have them."""

    def test_searches_are_right_around_an_index(self, scratch: Scratch) -> None:
        """Before and after it is built, after later writes and deletions, and reopened."""
        store = scratch.backend
        if not isinstance(store, Indexed):
            pytest.skip("no index to build")
        parts = [batch(FAR + 10_000 * i, clustered(1000, seed=i)) for i in range(3)]
        entries = write(store, *parts[:2])
        self.check(store, entries, QUERIES, k=20)
        done = store.build_index()
        assert done is None or done.strip()
        assert store.describe_index().strip()
        self.check(store, entries, QUERIES, k=20)
        write(store, parts[2])
        store.delete([FAR])
        store.flush()
        left = Entries.concatenate(parts[1:])
        self.check(store, left, QUERIES, k=20, with_keys=True)
        self.check(scratch.reopen(), left, QUERIES, k=20)

    def test_index_of_an_empty_store(self, scratch: Scratch) -> None:
        """Nothing to build is no error."""
        store = scratch.backend
        if not isinstance(store, Indexed):
            pytest.skip("no index to build")
        store.build_index()
        self.check(store, write(store, batch(FAR, QUERIES)), QUERIES)

    def test_compaction_keeps_what_is_left(self, scratch: Scratch) -> None:
        """Only the deleted and the replaced go, and the datastore grows no larger."""
        store = scratch.backend
        if not isinstance(store, Compactable):
            pytest.skip("nothing to compact")
        parts = [batch(FAR + 10_000 * i, clustered(800, seed=i)) for i in range(3)]
        write(store, *parts)
        store.delete([FAR, FAR + 10_000])
        replaced = batch(FAR + 20_000, clustered(800, seed=9), first=0)
        write(store, replaced)
        before = store.size()
        store.compact()
        after = store.size()
        assert before is None or after is None or after <= before
        assert store.count() == 800
        self.check(store, replaced, QUERIES, k=20, with_keys=True)
        more = write(store, batch(5, clustered(20, seed=10)))
        store = scratch.reopen()
        both = Entries.concatenate([replaced, more])
        self.check(store, both, QUERIES, k=20)
        within = DocumentFilter.keeping([5])
        self.check(store, both, QUERIES, k=30, within=within)
