"""What a scan yields: every entry once, in batches of bounded size."""

from __future__ import annotations

import numpy as np
import pytest

from knnlm_store.backend import VectorBackend
from knnlm_store.testing.base import Base, write
from knnlm_store.testing.truth import DIMENSION, FAR, assert_keys_equal, batch, clustered, line
from knnlm_store.values import Entries


def scanned(
    store: VectorBackend,
    *,
    with_keys: bool = False,
    documents: list[int] | None = None,
    batch_size: int = 4096,
) -> Entries:
    """Join a scan's batches by id, having looked at each."""
    batches = [batch(0, line(0) if with_keys else line(0)[:, :0])]
    for part in store.scan(with_keys=with_keys, documents=documents, batch_size=batch_size):
        assert 1 <= len(part) <= batch_size
        assert part.keys.shape == (len(part), DIMENSION if with_keys else 0)
        assert part.keys.dtype == np.float32
        for array in (part.tokens, part.documents, part.positions):
            assert array.shape == (len(part),)
            assert array.dtype == np.int64
        batches.append(part)
    everything = Entries.concatenate(batches)
    return everything[np.argsort(everything.ids)]


class Scanning(Base):
    """Tests of `scan`."""

    def same(self, store: VectorBackend, read: Entries, written: Entries) -> None:
        """Assert that a scan read what was written, each once."""
        written = written[np.argsort(written.ids)]
        for name in ("ids", "documents", "positions", "tokens"):
            assert getattr(read, name).tolist() == getattr(written, name).tolist()
        if read.keys.shape[1]:
            assert_keys_equal(read.keys, written.keys, self.tolerance[store.spec().storage])

    @pytest.mark.parametrize("with_keys", [False, True])
    @pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
    def test_scan(self, store: VectorBackend, batch_size: int, with_keys: bool) -> None:
        """Every entry once, no batch larger than asked, keys on request only."""
        parts = [batch(FAR + 100 * i, clustered(10, seed=i), range(i, i + 10)) for i in range(5)]
        written = write(store, *parts)
        read = scanned(store, with_keys=with_keys, batch_size=batch_size)
        self.same(store, read, written)

    def test_scan_of_some_documents(self, store: VectorBackend) -> None:
        """Those that exist among the ones named; an empty list names none."""
        parts = [batch(FAR + 100 * i, clustered(10, seed=i)) for i in range(5)]
        write(store, *parts)
        read = scanned(
            store, with_keys=True, documents=[FAR + 400, 3, FAR + 100, FAR + 400], batch_size=6
        )
        self.same(store, read, Entries.concatenate([parts[1], parts[4]]))
        assert list(store.scan(documents=[3])) == []
        assert list(store.scan(documents=[])) == []

    def test_scan_of_an_empty_store(self, store: VectorBackend) -> None:
        """No batch at all."""
        assert list(store.scan()) == []

    def test_scan_of_many(self, store: VectorBackend) -> None:
        """Past the page of any vendor, with ids across the whole range."""
        parts = [batch(n, clustered(1500, seed=n % 7)) for n in (0, 2**40, FAR, 2**63 - 2000)]
        written = write(store, *parts)
        self.same(store, scanned(store, with_keys=True), written)

    def test_scan_sees_replacements_and_deletions(self, store: VectorBackend) -> None:
        """What is gone is not read, and an id is read once, as last written."""
        old, other = batch(FAR, line(6)), batch(FAR + 100, line(6))
        write(store, old, other)
        new = batch(FAR, line(20)[14:], tokens=range(40, 46))
        store.delete([FAR + 100])
        write(store, new)
        self.same(store, scanned(store, with_keys=True), new)
