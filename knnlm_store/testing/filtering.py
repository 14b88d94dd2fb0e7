"""What a search restricted to some documents finds."""

from __future__ import annotations

import numpy as np
import pytest

from knnlm_store.backend import VectorBackend
from knnlm_store.testing.base import Base, write
from knnlm_store.testing.truth import FAR, batch, clustered, line
from knnlm_store.values import DocumentFilter, Entries

PARTS = [FAR + 1000 * i for i in range(6)]


class Filtering(Base):
    """Tests of `within`."""

    @pytest.fixture
    def six(self, store: VectorBackend) -> Entries:
        """Six documents of 40 entries, mixed in space."""
        return write(store, *(batch(d, clustered(40, seed=i)) for i, d in enumerate(PARTS)))

    @pytest.mark.parametrize("keep", [True, False], ids=["keep", "leave_out"])
    @pytest.mark.parametrize(
        "documents",
        [[], PARTS[:1], [PARTS[4], PARTS[1], PARTS[1]], PARTS, [5], [5, PARTS[2], FAR + 1]],
        ids=["none", "one", "two", "all", "unknown", "mixed"],
    )
    def test_filter(
        self, store: VectorBackend, six: Entries, documents: list[int], keep: bool
    ) -> None:
        """Only what passes is found, and all of it: k counts what passes."""
        make = DocumentFilter.keeping if keep else DocumentFilter.leaving_out
        self.check(store, six, clustered(5, seed=50), k=10, within=make(documents))

    def test_filter_that_leaves_fewer_than_k(self, store: VectorBackend, six: Entries) -> None:
        """The rest is padding, keys included."""
        for within in (DocumentFilter.keeping(PARTS[:1]), DocumentFilter.leaving_out(PARTS[1:])):
            found = self.check(store, six, line(2), k=64, within=within, with_keys=True)
            assert (found.tokens[:, :40] >= 0).all() or self.recall < 1
            assert (found.tokens[:, 40:] == -1).all()

    def test_filter_sees_past_nearer_documents(self, store: VectorBackend) -> None:
        """Filtering happens before the k nearest are taken, not after."""
        near = [batch(FAR + 1000 * i, line(1).repeat(100, axis=0)) for i in range(5)]
        far = batch(7, line(30)[20:])
        everything = write(store, *near, far)
        nearer = DocumentFilter.leaving_out([n.documents[0] for n in near])
        for within in (nearer, DocumentFilter.keeping([7])):
            self.check(store, everything, line(1), k=4, within=within)

    def test_filter_of_many_documents(self, store: VectorBackend, six: Entries) -> None:
        """Thousands of numbers, more than a vendor's expression may hold."""
        others = np.arange(3000, dtype=np.int64) * 7 + 1
        some = np.concatenate([others, np.array(PARTS[:2], np.int64)])
        for within in (DocumentFilter.keeping(some), DocumentFilter.leaving_out(some)):
            self.check(store, six, clustered(3, seed=51), k=10, within=within)

    def test_filter_does_not_outlive_its_search(self, store: VectorBackend, six: Entries) -> None:
        """The next search has all documents again."""
        queries = clustered(3, seed=52)
        self.check(store, six, queries, within=DocumentFilter.keeping(PARTS[:1]))
        self.check(store, six, queries)
