"""A datastore's life: create, find, reopen, drop."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from knnlm_store.backend import VectorBackend
from knnlm_store.errors import StoreExists, StoreNotFound, UsageError
from knnlm_store.testing.base import Base, Place, Scratch, write
from knnlm_store.testing.truth import DIMENSION, FAR, batch, clustered, line
from knnlm_store.values import Spec

ON_A_STORE: dict[str, Callable[[VectorBackend], object]] = {
    "spec": lambda store: store.spec(),
    "drop": lambda store: store.drop(),
    "upsert": lambda store: store.upsert(batch(1, line(2))),
    "delete": lambda store: store.delete([1]),
    "search": lambda store: store.search(line(1), 1),
    "scan": lambda store: list(store.scan()),
    "count": lambda store: store.count(),
    "put_records": lambda store: store.put_records({"a": b"1"}),
    "get_records": lambda store: store.get_records(["a"]),
    "delete_records": lambda store: store.delete_records(["a"]),
    "scan_records": lambda store: list(store.scan_records("")),
}
"""Everything that needs a datastore to be there."""


class Lifecycle(Base):
    """Tests that make and drop datastores of their own, and that reopen the shared one."""

    def test_absent_store_is_not_found_by_anything(self, absent: VectorBackend) -> None:
        """No call makes a datastore by accident, or answers for one that is not there."""
        assert not absent.exists()
        for call in ON_A_STORE.values():
            with pytest.raises(StoreNotFound):
                call(absent)
        assert not absent.exists()

    def test_create(self, absent: VectorBackend) -> None:
        """A new datastore has its spec and first records, and no entries."""
        spec = Spec(DIMENSION, self.default_storage)
        absent.create(spec, {"manifest": b"{}", "other": b""})
        assert absent.exists()
        assert absent.spec() == spec
        assert absent.count() == 0
        assert dict(absent.scan_records("")) == {"manifest": b"{}", "other": b""}

    def test_create_twice_is_refused(self, absent: VectorBackend) -> None:
        """The second creator changes nothing."""
        spec = Spec(DIMENSION, self.default_storage)
        absent.create(spec, {"manifest": b"first"})
        written = write(absent, batch(FAR, line(3)))
        with pytest.raises(StoreExists):
            absent.create(Spec(DIMENSION + 1, self.default_storage), {"manifest": b"second"})
        assert absent.spec() == spec
        assert absent.get_records(["manifest"]) == {"manifest": b"first"}
        self.check(absent, written, line(1))

    @pytest.mark.parametrize(
        "wrong", [Spec(DIMENSION, "no-such-storage"), Spec(0), Spec(-3)], ids=str
    )
    def test_create_refuses_impossible_spec(self, absent: VectorBackend, wrong: Spec) -> None:
        """A refused datastore is not made."""
        with pytest.raises(UsageError):
            absent.create(wrong, {})
        assert not absent.exists()

    def test_one_of_two_creators_succeeds(self, place: Place) -> None:
        """Two first writers at once: one datastore, of which both records are the winner's."""
        name, spec = place.new_name(), Spec(DIMENSION, self.default_storage)
        stores = [place.open(name), place.open(name)]

        def create(writer: int) -> bool:
            mark = str(writer).encode()
            try:
                stores[writer].create(spec, {"manifest": mark, "transform": mark})
            except StoreExists:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            won = list(pool.map(create, range(2)))
        assert sorted(won) == [False, True]
        mark = str(won.index(True)).encode()
        for store in stores:
            assert dict(store.scan_records("")) == {"manifest": mark, "transform": mark}

    def test_drop_leaves_nothing(self, absent: VectorBackend) -> None:
        """A name can be used again, for another dimension, and starts empty."""
        storage = self.default_storage
        absent.create(Spec(DIMENSION, storage), {"old": b"1"})
        write(absent, batch(FAR, line(3)))
        absent.drop()
        assert not absent.exists()
        absent.create(Spec(DIMENSION + 4, storage), {})
        assert absent.count() == 0
        assert list(absent.scan_records("")) == []
        wide = clustered(4, seed=0).repeat(2, axis=1)[:, : DIMENSION + 4]
        self.check(absent, write(absent, batch(FAR, wide)), wide)

    def test_names_lists_what_exists(self, place: Place) -> None:
        """Names are sorted, and those of datastores only."""
        if not self.durable:
            pytest.skip("these datastores die with their objects, which know of no others")
        names = [place.new_name()]
        place.open(names[0]).create(Spec(DIMENSION, self.default_storage), {"a": b"1"})
        place.open(place.new_name())  # never created
        listed = place.names()
        assert names[0] in listed
        assert listed == sorted(listed)
        assert all(place.open(name).exists() for name in listed)
        place.open(names[0]).drop()
        assert names[0] not in place.names()

    def test_reopening_finds_everything(self, scratch: Scratch) -> None:
        """Spec, entries, records and deletions outlive the object, and writing goes on."""
        spec = scratch.backend.spec()
        kept = batch(FAR, clustered(40, seed=1))
        write(scratch.backend, kept, batch(FAR + 1000, clustered(5, seed=2)))
        scratch.backend.delete([FAR + 1000])
        scratch.backend.put_records({"manifest": b"m", "document/1": b"d"})
        scratch.backend.flush()
        store = scratch.reopen()
        assert store.spec() == spec
        assert store.count() == len(kept)
        assert dict(store.scan_records("")) == {"document/1": b"d", "manifest": b"m"}
        self.check(store, kept, clustered(3, seed=3), with_keys=True)
        more = write(store, batch(FAR + 2000, clustered(5, seed=4)))
        both = kept.concatenate([kept, more])
        self.check(scratch.reopen(), both, clustered(3, seed=3), k=20)

    def test_second_object_sees_what_was_flushed(self, scratch: Scratch) -> None:
        """Another user of the datastore finds new entries, and misses deleted ones, at once."""
        reader = scratch.second()
        assert reader.count() == 0
        written = write(scratch.backend, batch(FAR, line(4)), batch(FAR + 9, line(4)))
        self.check(reader, written, line(2))
        scratch.backend.delete([FAR])
        scratch.backend.flush()
        self.check(reader, written[written.documents == FAR + 9], line(2))
        assert reader.count() == 4
        assert np.unique(next(reader.scan()).documents).tolist() == [FAR + 9]
