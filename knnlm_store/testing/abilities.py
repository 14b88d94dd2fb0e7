"""What some backends can do besides: build an index, compact, give second names."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from knnlm_store.backend import Aliased, Compactable, Indexed, VectorBackend
from knnlm_store.errors import StoreExists, StoreNotFound, UsageError
from knnlm_store.testing.base import Base, Place, Scratch, write
from knnlm_store.testing.truth import DIMENSION, FAR, batch, clustered
from knnlm_store.values import DocumentFilter, Entries, Location, Spec

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
        """Only the deleted and the replaced go, whoever reads and writes meanwhile.

        And an entry takes no more space than before.
        """
        store, other = scratch.backend, scratch.second()
        if not isinstance(store, Compactable):
            pytest.skip("nothing to compact")
        left = _worn(store)
        self.check(other, left, QUERIES, k=20)
        before = store.size()
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(store.compact)
            added = [write(other, batch(100 * i, clustered(20, seed=i))) for i in range(1, 11)]
            whole = Entries.concatenate([left, *added])
            self.check(other, whole, QUERIES, k=20)
            done.result()
        after = store.size()
        assert before is None or after is None or after / len(whole) <= before / len(left)
        more = write(store, batch(5, clustered(20, seed=10)))
        whole = Entries.concatenate([whole, more])
        self._assert_whole(store, whole)
        self._assert_whole(other, whole)
        self._assert_whole(scratch.reopen(), whole)

    def test_an_alias_is_moved(self, place: Place, location: Location) -> None:
        """Who opens it gets what it means then; objects stay with what they opened."""
        (_, first), (_, second) = self._two(place)
        alias = place.new_name()
        if not (isinstance(first, Aliased) and isinstance(second, Aliased)):
            pytest.skip("no aliases")
        first.set_alias(alias)
        before = place.open(alias)
        assert before.get_records(["name"]) == {"name": b"first"}
        second.set_alias(alias)
        after = place.open(alias)
        for store, number in ((before, 0), (after, 1)):
            own = batch(FAR + number, clustered(5, seed=number))
            self.check(store, own, QUERIES)
        assert after.get_records(["name"]) == {"name": b"second"}
        adapter: type[Aliased] = type(first)
        assert alias in adapter.aliases(location)
        assert alias not in place.names()
        with pytest.raises(UsageError):
            after.drop()
        adapter.remove_alias(replace(location, name=alias))
        assert alias not in adapter.aliases(location)
        assert not place.open(alias).exists()
        assert second.count() == 5

    def test_dropping_takes_the_aliases_along(self, place: Place, location: Location) -> None:
        """Those of that datastore only; and a new one may have the alias's name."""
        (_, first), (_, second) = self._two(place)
        if not (isinstance(first, Aliased) and isinstance(second, Aliased)):
            pytest.skip("no aliases")
        gone = place.new_name()
        first.set_alias(gone)
        assert place.open(gone).exists()
        left = place.new_name()
        second.set_alias(left)
        first.drop()
        assert not first.exists()
        known = type(first).aliases(location)
        assert gone not in known
        assert left in known
        assert not place.open(gone).exists()
        with pytest.raises(StoreNotFound):
            type(first).remove_alias(replace(location, name=gone))
        place.open(gone).create(Spec(DIMENSION, self.default_storage), {"name": b"new"})
        assert place.open(gone).get_records(["name"]) == {"name": b"new"}
        assert place.open(left).get_records(["name"]) == {"name": b"second"}
        type(second).remove_alias(replace(location, name=left))

    def test_an_alias_is_no_datastores_name(self, place: Place, location: Location) -> None:
        """Neither is a datastore hidden behind an alias, nor removed as one."""
        (_, first), (taken, second) = self._two(place)
        if not isinstance(first, Aliased):
            pytest.skip("no aliases")
        with pytest.raises(StoreExists):
            first.set_alias(taken)
        for name in (taken, place.new_name()):
            with pytest.raises(StoreNotFound):
                type(first).remove_alias(replace(location, name=name))
        assert second.get_records(["name"]) == {"name": b"second"}

    def _assert_whole(self, store: VectorBackend, entries: Entries) -> None:
        """Count, search and read what is left after `_worn` and a document 5 besides."""
        assert store.count() == len(entries)
        self.check(store, entries, QUERIES, k=20, with_keys=True)
        self.check(store, entries, QUERIES, k=30, within=DocumentFilter.keeping([5]))
        assert dict(store.scan_records("")) == {"kept": b"1"}

    def _two(self, place: Place) -> list[tuple[str, VectorBackend]]:
        """Two datastores with five entries each, and their names."""
        made = []
        for number, mark in enumerate((b"first", b"second")):
            name = place.new_name()
            store = place.open(name)
            store.create(Spec(DIMENSION, self.default_storage), {"name": mark})
            write(store, batch(FAR + number, clustered(5, seed=number)))
            made.append((name, store))
        return made


def _worn(store: VectorBackend) -> Entries:
    """Write, replace and delete entries and records; gives the entries that are left."""
    write(store, *(batch(FAR + 10_000 * i, clustered(800, seed=i)) for i in range(3)))
    store.put_records({"kept": b"1", "gone": bytes(2000)})
    store.delete([FAR, FAR + 10_000])
    store.delete_records(["gone"])
    return write(store, batch(FAR + 20_000, clustered(800, seed=9), first=0))
