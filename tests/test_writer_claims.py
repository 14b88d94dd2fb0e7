"""The writer beside another one: what it leaves alone, and what it waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from knnlm_store import intents, writer, writers
from knnlm_store.catalog import Catalog
from knnlm_store.documents import Change, scan
from knnlm_store.errors import BackendUnavailable, StoreError
from knnlm_store.memory import MemoryBackend
from knnlm_store.values import Entries
from knnlm_store.writer import DocumentWriter
from tests.ingest_support import an_intent, bare, record, some_entries


@pytest.fixture
def backend() -> MemoryBackend:
    return bare()


@pytest.fixture
def other() -> Iterator[str]:
    """Name of another writer, which is at work."""
    name = writers.new_name()
    writers.begin_work(name)
    yield name
    writers.end_work(name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intents, "PATIENCE", 0.1)


def numbers(backend: MemoryBackend) -> set[int]:
    return {int(n) for batch in backend.scan() for n in batch.documents}


def within(seconds: float, condition: Callable[[], object]) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def write(at_work: DocumentWriter, name: str, number: int) -> None:
    change = Change(record(name, number))
    at_work.begin(change)
    at_work.put(some_entries(number, 5))
    at_work.done(change)


@pytest.mark.usefixtures("impatient")
def test_what_another_writer_has_is_left_to_it(backend: MemoryBackend, other: str) -> None:
    """Also where its entries come mixed with others', and some of them come later."""
    intents.put(backend, [an_intent("s/taken", 7, other)])
    changes = [Change(record("free", 100)), Change(record("taken", 200))]
    with DocumentWriter(backend, Catalog(backend)) as at_work:
        for change in changes:
            at_work.begin(change)
        both = Entries.concatenate([some_entries(200, 5), some_entries(100, 5)])
        at_work.put(both[[0, 5, 6, 1]])
        within(20, lambda: numbers(backend))
        at_work.put(both[[7, 2, 3, 8, 9, 4]])
        for change in changes:
            at_work.done(change)
    assert at_work.refused == {"s/taken"}
    assert numbers(backend) == {100}
    assert backend.count() == 5
    assert [d.name for d in scan(backend)] == ["free"]
    assert [intent.writer for intent in intents.scan(backend)] == [other]


def test_it_waits_for_another_writer_to_finish(backend: MemoryBackend, other: str) -> None:
    theirs = [an_intent("s/a", 7, other)]
    intents.put(backend, theirs)
    with DocumentWriter(backend, Catalog(backend)) as at_work:
        write(at_work, "a", 100)
        time.sleep(0.3)
        assert backend.count() == 0
        intents.remove(backend, theirs)
    assert at_work.refused == set()
    assert numbers(backend) == {100}
    assert list(intents.scan(backend)) == []


def test_what_is_done_is_committed_before_it_waits(
    backend: MemoryBackend, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one may be waiting for just that."""
    monkeypatch.setattr(writer, "_BATCH", 1)
    theirs = [an_intent("s/b", 7, other)]
    intents.put(backend, theirs)
    with DocumentWriter(backend, Catalog(backend)) as at_work:
        write(at_work, "a", 100)
        write(at_work, "b", 200)
        within(20, lambda: [d.name for d in scan(backend)] == ["a"])
        within(20, lambda: "s/a" not in {i.document for i in intents.scan(backend)})
        assert numbers(backend) == {100}
        intents.remove(backend, theirs)
    assert at_work.refused == set()
    assert numbers(backend) == {100, 200}


def test_two_that_want_what_the_other_has(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has finished one document and goes on to the other's: neither runs out of patience."""
    monkeypatch.setattr(writer, "_BATCH", 1)
    met = threading.Barrier(2, timeout=20)
    refused: list[set[str]] = []

    def work(first: str, second: str, number: int) -> None:
        with DocumentWriter(backend, Catalog(backend)) as at_work:
            write(at_work, first, number)
            within(20, lambda: number in numbers(backend))
            met.wait()
            write(at_work, second, number + 100)
        refused.append(at_work.refused)

    began = time.monotonic()
    threads = [threading.Thread(target=work, args=a) for a in (("a", "b", 100), ("b", "a", 300))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert refused == [set(), set()]
    assert time.monotonic() - began < intents.PATIENCE / 2
    assert {d.version.number for d in scan(backend)} == numbers(backend) == {200, 400}
    assert backend.count() == 10
    assert list(intents.scan(backend)) == []


def test_an_exception_ends_the_waiting(backend: MemoryBackend, other: str) -> None:
    intents.put(backend, [an_intent("s/a", 7, other)])
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        wait_and_fail(backend)
    assert time.monotonic() - began < intents.PATIENCE / 2
    assert backend.count() == 0
    assert [intent.writer for intent in intents.scan(backend)] == [other]


def wait_and_fail(backend: MemoryBackend) -> None:
    with DocumentWriter(backend, Catalog(backend)) as at_work:
        write(at_work, "a", 100)
        time.sleep(0.3)
        raise KeyboardInterrupt


def test_metadata_waits_its_turn(
    backend: MemoryBackend, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Done as soon as it was begun, beside a document that is done and one that is not ours."""
    monkeypatch.setattr(intents, "PATIENCE", 0.1)
    theirs = [an_intent("s/noted", 7, other)]
    intents.put(backend, theirs)
    note = Change(record("noted", 50, metadata={"x": 1}), with_entries=False)
    with DocumentWriter(backend, Catalog(backend)) as at_work:
        at_work.begin(note)
        at_work.done(note)
        write(at_work, "a", 100)
    assert at_work.refused == {"s/noted"}
    assert [d.name for d in scan(backend)] == ["a"]


def test_a_backend_that_comes_back_while_others_are_waited_for(
    backend: MemoryBackend, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that failed halfway is made again, as a whole."""
    theirs = [an_intent("s/b", 7, other)]
    intents.put(backend, theirs)
    kept, failures = backend.scan_records, [0]

    def flaky(prefix: str) -> Iterator[tuple[str, bytes]]:
        if prefix == "intent/" and failures[0] < 3:
            failures[0] += 1
            raise BackendUnavailable("busy")
        return kept(prefix)

    with DocumentWriter(backend, Catalog(backend)) as at_work:
        monkeypatch.setattr(backend, "scan_records", flaky)
        both = [Change(record("a", 100)), Change(record("b", 200))]
        for change in both:
            at_work.begin(change)
        at_work.put(Entries.concatenate([some_entries(100, 5), some_entries(200, 5)]))
        for change in both:
            at_work.done(change)
        within(20, lambda: failures[0] == 3)
        intents.remove(backend, theirs)
    assert at_work.refused == set()
    assert numbers(backend) == {100, 200}
    assert np.unique(np.concatenate([e.ids for e in backend.scan()])).size == 10
    assert list(intents.scan(backend)) == []


def test_nothing_is_written_after_a_lease_that_was_lost(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage outlasts it, others take the document: the repeated write would be nobody's."""
    monkeypatch.setattr(writer, "RENEW", 0.0)
    put, tries = backend._upsert, []

    def upsert(entries: Entries) -> None:
        tries.append(len(entries))
        if len(tries) == 1:
            for intent in list(intents.scan(backend)):
                intents.remove(backend, [intent])  # as whoever took the document does
            raise BackendUnavailable("down")
        put(entries)

    monkeypatch.setattr(backend, "_upsert", upsert)
    known = Catalog(backend)
    told = pytest.raises(StoreError, match="Another process took over 1 of the documents")
    with told, DocumentWriter(backend, known) as at_work:
        write(at_work, "a", 100)
    assert tries == [5]
    assert backend.count() == 0
