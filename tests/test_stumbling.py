"""A backend that fails once, at any one call: ingests and copies come out as if it had not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import pytest
import tenacity

from knnlm_store import intents
from knnlm_store.calibration import keep_temperature, stored_temperature
from knnlm_store.copying import copy
from knnlm_store.datastore import Datastore
from knnlm_store.errors import BackendUnavailable
from knnlm_store.ingest import ingest
from knnlm_store.models import LanguageModel
from knnlm_store.values import Entries, Int64
from tests.ingest_support import (
    an_intent,
    assert_whole,
    corpus,
    dead_writer,
    held,
    new_store,
)
from tests.mutants.able import Able

BEFORE = {"a": "one text", "b": "a second one"}
AFTER = BEFORE | {"a": "another text", "c": "a third one"}


class Stumbling(Able):
    """Fails at its n-th call, for a passing reason."""

    calls: Iterator[int]
    stumbles_at = 0

    def _step(self) -> None:
        if next(self.calls) == self.stumbles_at:
            raise BackendUnavailable("busy")

    def count(self, documents: Sequence[int] | Int64 | None = None) -> int:
        self._step()
        return super().count(documents)

    def _upsert(self, entries: Entries) -> None:
        self._step()
        super()._upsert(entries)

    def _delete(self, documents: Int64) -> None:
        self._step()
        super()._delete(documents)

    def put_records(self, records: Mapping[str, bytes]) -> None:
        self._step()
        super().put_records(records)

    def get_records(self, names: Sequence[str]) -> dict[str, bytes]:
        self._step()
        return super().get_records(names)

    def delete_records(self, names: Sequence[str]) -> None:
        self._step()
        super().delete_records(names)

    def scan_records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        self._step()
        yield from super().scan_records(prefix)

    def build_index(self) -> str | None:
        self._step()
        return "built"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is repeated without a pause."""
    monkeypatch.setattr(tenacity, "wait_random_exponential", lambda **_: tenacity.wait_none())


@pytest.fixture(scope="module")
def before(shared_model: LanguageModel) -> Datastore:
    return filled(shared_model, BEFORE)


@pytest.fixture(scope="module")
def after(shared_model: LanguageModel) -> Datastore:
    return filled(shared_model, AFTER)


def filled(lm: LanguageModel, texts: Mapping[str, str]) -> Datastore:
    """A datastore with a temperature, in which a killed writer left a document half done."""
    store = new_store(lm)
    ingest(corpus(texts), lm, store)
    intents.put(store.backend, [an_intent("s/a", 5, dead_writer())])
    keep_temperature(store)
    return store


def twin(store: Datastore) -> Datastore:
    """The same in a backend that can stumble."""
    backend = Stumbling(store.location)
    backend.calls = itertools.count(1)
    backend.create(store.backend.spec(), dict(store.backend.scan_records("")))
    backend.upsert(held(store))
    return Datastore(store.location, backend, store.manifest)


def stumbles(store: Datastore, at: int, work: Callable[[], object]) -> bool:
    """Do work of which the n-th call fails; tell whether there were so many."""
    backend = store.backend
    assert isinstance(backend, Stumbling)
    backend.calls, backend.stumbles_at = itertools.count(1), at
    work()
    backend.stumbles_at = 0
    return next(backend.calls) > at


def assert_done(store: Datastore, temperature: float | None) -> None:
    assert_whole(store)
    assert {document.name for document in store.documents()} == set(AFTER)
    assert stored_temperature(store) == temperature


def test_an_ingest(before: Datastore, shared_model: LanguageModel) -> None:
    for at in itertools.count(1):
        store = twin(before)
        if not stumbles(store, at, partial(ingest, corpus(AFTER), shared_model, store)):
            break
        assert_done(store, None)
    assert at > 15


@pytest.mark.parametrize("stumbling", ["source", "target"])
def test_a_copy(before: Datastore, after: Datastore, stumbling: str) -> None:
    for at in itertools.count(1):
        stores = {"source": twin(after), "target": twin(before)}
        if not stumbles(stores[stumbling], at, partial(copy, *stores.values())):
            break
        assert_done(stores["target"], stored_temperature(after))
    assert at > (15 if stumbling == "target" else 2)
