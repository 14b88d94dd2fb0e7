"""What the parts of the suite share: what a backend declares, and the datastores of the tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar
from uuid import uuid4

import numpy as np
import pytest

from knnlm_store.backend import VectorBackend
from knnlm_store.testing.truth import DIMENSION, compare
from knnlm_store.values import DocumentFilter, Entries, Float32, Location, Neighbours, Spec


class Place:
    """Opens datastores at one location under names of its own, and drops them in the end."""

    def __init__(self, adapter: type[VectorBackend], location: Location, durable: bool) -> None:
        self._adapter, self._location, self._durable = adapter, location, durable
        self._prefix = f"suite_{uuid4().hex[:8]}"
        self._opened: dict[str, list[VectorBackend]] = {}
        self._numbers = itertools.count()

    def new_name(self) -> str:
        """Give a name that no datastore has, of letters every vendor takes."""
        return f"{self._prefix}_{next(self._numbers)}"

    def open(self, name: str) -> VectorBackend:
        """Bind a fresh object to the datastore; the same one if it would die with the object."""
        opened = self._opened.setdefault(name, [])
        if not opened or self._durable:
            opened.append(self._adapter.connect(replace(self._location, name=name)))
        return opened[-1]

    def reopen(self, name: str) -> VectorBackend:
        """Close every object of the datastore, and bind a fresh one."""
        if self._durable:
            self._close(name)
        return self.open(name)

    def names(self) -> list[str]:
        """List the datastores of this place, as the adapter does."""
        listed = self._adapter.names(self._location)
        return [name for name in listed if name.startswith(self._prefix)]

    def clear(self) -> None:
        """Drop what is left and close everything."""
        for name, opened in self._opened.items():
            if opened[-1].exists():
                opened[-1].drop()
            self._close(name)

    def _close(self, name: str) -> None:
        for backend in self._opened[name]:
            backend.close()
        self._opened[name] = []


class Scratch:
    """A datastore that the tests of a class share: on some servers making one costs seconds."""

    def __init__(self, place: Place, spec: Spec) -> None:
        self._place, self._spec, self.name = place, spec, place.new_name()
        self.backend = place.open(self.name)
        self.backend.create(spec, {})

    def reopen(self) -> VectorBackend:
        """Close the object and find the datastore again by its location."""
        self.backend = self._place.reopen(self.name)
        return self.backend

    def second(self) -> VectorBackend:
        """Open the datastore once more, beside the first object."""
        return self._place.open(self.name)

    def empty(self) -> None:
        """Remove all entries and records."""
        store = self.backend
        batches = [batch.documents for batch in store.scan()]
        if batches:
            store.delete(np.concatenate(batches))
        store.delete_records([name for name, _ in store.scan_records("")])
        store.flush()
        if store.count():  # a broken delete fails its own tests, not all that follow
            store.drop()
            store.create(self._spec, {})


class Base:
    """What a backend's subclass declares. Only `adapter` and the fixture `location` are needed."""

    adapter: ClassVar[type[VectorBackend]]
    """The class under test."""
    durable: ClassVar[bool] = True
    """Whether a datastore outlives the object that wrote it."""
    storages: ClassVar[tuple[str, ...]] = ()
    """Storages to test, the adapter's own if empty."""
    tolerance: ClassVar[Mapping[str, float]] = {"float32": 1e-5, "float16": 5e-3, "int8": 3e-2}
    """Error allowed in a squared distance, by storage, in parts of |query|^2 + max |key|^2."""
    recall: ClassVar[float] = 1.0
    """Least share of the true neighbours a search must find; a dozen entries are all found."""
    gaps: ClassVar[Mapping[str, str]] = {}
    """Known gaps: the name of a test to why it fails. A gap that closes fails the suite."""

    @pytest.fixture(scope="class")
    @classmethod
    def location(cls) -> Location:
        """Give the place to make datastores in; its name is ignored. A subclass overrides this."""
        raise NotImplementedError(f"{cls.__name__} must override the fixture `location`.")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run whatever asks for `storage` once for each."""
        if "storage" in metafunc.fixturenames:
            storages = self.storages or self.adapter.storages
            metafunc.parametrize("storage", storages, scope="class")

    @pytest.fixture(autouse=True)
    def _expect_declared_gap(self, request: pytest.FixtureRequest) -> None:
        name = request.node.name
        reason = self.gaps.get(name) or self.gaps.get(name.partition("[")[0])
        if reason:
            request.applymarker(pytest.mark.xfail(strict=True, reason=reason))

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, location: Location) -> Iterator[Place]:
        """Give the place that tests of a datastore's life open names in."""
        place = Place(cls.adapter, location, cls.durable)
        yield place
        place.clear()

    @pytest.fixture
    def absent(self, place: Place) -> VectorBackend:
        """Give a datastore that does not exist yet."""
        return place.open(place.new_name())

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls, place: Place, storage: str) -> Scratch:
        """Give the one datastore of this class and storage, as the last test left it."""
        return Scratch(place, Spec(DIMENSION, storage))

    @pytest.fixture
    def scratch(self, shared: Scratch) -> Scratch:
        """Give that datastore emptied, for tests that reopen it."""
        shared.empty()
        return shared

    @pytest.fixture
    def store(self, scratch: Scratch) -> VectorBackend:
        """Give that datastore emptied."""
        return scratch.backend

    @property
    def default_storage(self) -> str:
        """The storage of tests that need but one."""
        return (self.storages or self.adapter.storages)[0]

    def check(
        self,
        store: VectorBackend,
        entries: Entries,
        queries: Float32,
        k: int = 5,
        within: DocumentFilter | None = None,
        with_keys: bool = False,
    ) -> Neighbours:
        """Search, and compare with brute force over what the datastore must hold."""
        found = store.search(queries, k, within=within, with_keys=with_keys)
        allowed = entries if within is None else entries[within.mask(entries.documents)]
        self.compare(store, found, allowed, queries, k)
        assert (found.keys is not None) == with_keys
        return found

    def compare(
        self,
        store: VectorBackend,
        found: Neighbours,
        allowed: Entries,
        queries: Float32,
        k: int,
        recall: float | None = None,
    ) -> None:
        """Compare what a search found with brute force over `allowed`."""
        tolerance = self.tolerance[store.spec().storage]
        compare(found, allowed, queries, k, tolerance, self.recall if recall is None else recall)


def write(store: VectorBackend, *batches: Entries) -> Entries:
    """Upsert batches, flush, and give back what was written as one."""
    for batch in batches:
        store.upsert(batch)
    store.flush()
    return Entries.concatenate(list(batches))
