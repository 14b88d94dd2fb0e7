"""The writer: bounded, ordered, patient with what passes and prompt with what does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from knnlm_store import intents, writer
from knnlm_store.catalog import Catalog
from knnlm_store.documents import Change, DocumentRecord, Version, scan
from knnlm_store.errors import BackendUnavailable, InvalidEntries, StorageFull
from knnlm_store.memory import MemoryBackend
from knnlm_store.registry import connect
from knnlm_store.values import Entries, Float32, Int64, Location, Spec
from knnlm_store.writer import DocumentWriter
from tests.ingest_support import some_entries

WIDTH = 4


class Moody(MemoryBackend):
    """Says what it is asked to change, waits at a gate, and fails where it is told to."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self.history: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fails: Callable[[str], Exception | None] = lambda _: None

    def _meet(self, what: str) -> None:
        self.history.append(what)
        assert self.gate.wait(30)
        if error := self.fails(what):
            raise error

    def _upsert(self, entries: Entries) -> None:
        self._meet("upsert")
        super()._upsert(entries)

    def _delete(self, documents: Int64) -> None:
        self._meet("delete")
        super()._delete(documents)

    def flush(self) -> None:
        self._meet("flush")

    def put_records(self, records: Mapping[str, bytes]) -> None:
        self._meet("intent" if min(records).startswith("intent/") else "commit")
        super().put_records(records)

    def delete_records(self, names: Sequence[str]) -> None:
        self._meet("release")
        super().delete_records(names)


@pytest.fixture
def backend() -> Moody:
    made = Moody.connect(Location("memory", "", "memory"))
    made.create(Spec(WIDTH), {})
    return made


def keys(count: int) -> Float32:
    return some_entries(1, count, WIDTH).keys


def begun(at_work: DocumentWriter, version: Version, name: str = "a") -> Change:
    change = Change(DocumentRecord("s", name, {}, version))
    at_work.begin(change)
    return change


def write_one(at_work: DocumentWriter, known: Catalog, name: str, tokens: int = 3) -> None:
    version = known.new_version(f"s/{name}", f"digest {name} {tokens}", tokens, 0)
    change = begun(at_work, version, name)
    at_work.write(version, 0, keys(tokens), np.arange(tokens, dtype=np.int64))
    at_work.done(change)


def write_some(backend: Moody, count: int, give_up_after: float = 120.0) -> None:
    with DocumentWriter(backend, known := Catalog(backend), give_up_after) as at_work:
        for i in range(count):
            write_one(at_work, known, str(i))


def committed(backend: Moody) -> list[str]:
    return [d.name for d in scan(backend)]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_order_that_makes_a_kill_harmless(backend: Moody) -> None:
    write_some(backend, 1)
    assert backend.history == ["intent", "upsert", "flush", "commit", "release"]
    backend.history.clear()
    known = Catalog(backend)
    with DocumentWriter(backend, known) as at_work:
        version = known.new_version("s/0", "new", 2, 0)
        change = begun(at_work, version, "0")
        at_work.write(version, 0, keys(2), np.array([70_000, 2**32 - 1]))
        at_work.done(change)
    assert backend.history[:4] == ["intent", "upsert", "flush", "commit"]
    assert backend.history[4:] == ["delete", "flush", "commit", "release"]
    (entries,) = backend.scan()
    assert entries.tokens.tolist() == [70_000, 2**32 - 1]
    assert set(entries.documents.tolist()) == {version.number}


def test_large_token_ids_on_disk(tmp_path: Path) -> None:
    """Vocabularies exceed 65,535; others overflowed there."""
    store = connect(f"faiss:{tmp_path}/x")
    store.create(Spec(WIDTH), {})
    known, tokens = Catalog(store), np.array([65_535, 65_536, 151_935, 2**32 - 1])
    with DocumentWriter(store, known) as at_work:
        version = known.new_version("s/a", "d", 4, 0)
        change = begun(at_work, version)
        at_work.write(version, 0, keys(4), tokens)
        at_work.done(change)
    assert np.concatenate([e.tokens for e in store.scan()]).tolist() == tokens.tolist()
    store.close()


def test_one_barrier_for_many_documents(backend: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    write_some(backend, 50)
    assert backend.history.count("flush") == 1
    assert backend.history.count("commit") == 1
    assert len(committed(backend)) == 50
    backend.history.clear()
    monkeypatch.setattr(writer, "_GROUP_SECONDS", 0.0)
    write_some(backend, 10)
    assert backend.history.count("flush") >= 10


def test_entries_wait_for_each_other_while_the_backend_is_busy(backend: Moody) -> None:
    """Small writes become one large one: it is the round trip that costs."""
    backend.gate.clear()
    known = Catalog(backend)
    with DocumentWriter(backend, known) as at_work:
        version = known.new_version("s/a", "d", 7, 0)
        change = begun(at_work, version)
        for i in range(7):
            at_work.write(version, i, keys(1), np.array([i]))
        backend.gate.set()
        at_work.done(change)
    assert backend.history.count("upsert") <= 2
    assert backend.count() == 7


def test_a_slow_backend_holds_the_producer_back(
    backend: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is a few batches, whatever the length of the corpus."""
    monkeypatch.setattr(writer, "_BATCH", 1)
    backend.gate.clear()
    known, put, total = Catalog(backend), [0], 60

    def produce() -> None:
        with DocumentWriter(backend, known) as at_work:
            version = known.new_version("s/a", "d", total, 0)
            change = begun(at_work, version)
            for i in range(total):
                at_work.write(version, i, keys(1), np.array([i]))
                put[0] += 1
            at_work.done(change)

    producer = threading.Thread(target=produce)
    producer.start()
    most = writer._DEPTH + 1  # behind the first one, whose claim waits at the gate
    wait_for(lambda: put[0] >= most)
    time.sleep(0.1)
    assert put[0] == most
    backend.gate.set()
    producer.join(30)
    assert put[0] == total == backend.count()


def test_entries_in_hand_are_bounded(backend: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is written once it is full, even if there is always more in the queue."""
    monkeypatch.setattr(writer, "_BATCH", 10 * WIDTH * 4)
    largest = 0
    kept = backend._upsert

    def upsert(entries: Entries) -> None:
        nonlocal largest
        largest = max(largest, len(entries))
        time.sleep(0.01)
        kept(entries)

    monkeypatch.setattr(backend, "_upsert", upsert)
    with DocumentWriter(backend, known := Catalog(backend)) as at_work:
        version = known.new_version("s/a", "d", 120, 0)
        change = begun(at_work, version)
        for i in range(0, 120, 4):
            at_work.write(version, i, keys(4), np.arange(4))
        at_work.done(change)
    assert 4 < largest <= 10 + 4 - 1
    assert backend.count() == 120


def test_transient_errors_are_retried(backend: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of change fails at first; the result is as if none had."""
    write_some(backend, 2)
    backend.history.clear()
    failed: set[str] = set()

    def once(what: str) -> Exception | None:
        if what in failed:
            return None
        failed.add(what)
        return BackendUnavailable("busy")

    backend.fails = once
    with DocumentWriter(backend, known := Catalog(backend)) as at_work:
        for i in range(3):
            write_one(at_work, known, str(i), tokens=4)  # a new version of 0 and 1
    assert failed == {"intent", "upsert", "flush", "commit", "delete", "release"}
    assert committed(backend) == ["0", "1", "2"]
    assert backend.count() == 12
    assert all(d.stale == () for d in scan(backend))
    assert list(intents.scan(backend)) == []


def test_patience_ends(backend: Moody) -> None:
    backend.fails = lambda what: BackendUnavailable("down") if what == "upsert" else None
    with pytest.raises(BackendUnavailable, match="down"):
        write_some(backend, 3, give_up_after=0.3)
    assert backend.history.count("upsert") > 1
    assert committed(backend) == []


def test_permanent_errors_are_raised_at_the_next_call(backend: Moody) -> None:
    backend.fails = lambda what: StorageFull("No space left.") if what == "upsert" else None
    with pytest.raises(StorageFull):
        write_some(backend, 1000)
    assert backend.history.count("intent") < 20
    assert backend.history.count("upsert") == 1
    assert backend.history[-1] == "upsert"
    assert committed(backend) == []


def test_an_error_in_the_last_batch_is_raised_at_the_end(backend: Moody) -> None:
    """When the producer's last call returned, the writer had not met it yet."""
    returned: list[bool] = []

    def write() -> None:
        with DocumentWriter(backend, known) as at_work:
            backend.gate.clear()
            version = known.new_version("s/a", "d", 2, 0)
            change = begun(at_work, version)
            at_work.write(version, 0, keys(2) * np.float32("nan"), np.arange(2))
            at_work.done(change)
            returned.append(True)
            backend.gate.set()

    known = Catalog(backend)
    with pytest.raises(InvalidEntries, match="NaN"):
        write()
    assert returned
    assert committed(backend) == []
    assert backend.count() == 0


def interrupt(backend: Moody, kind: type[BaseException], *, after: int) -> None:
    """Two documents are finished when the producer fails, after so many tries of a claim."""
    with DocumentWriter(backend, known := Catalog(backend)) as at_work:
        write_one(at_work, known, "finished")
        write_one(at_work, known, "finished as well")
        wait_for(lambda: backend.history.count("intent") >= after)
        threading.Timer(0.1, backend.gate.set).start()
        raise kind


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_exception_commits_nothing_more(backend: Moody, kind: type[BaseException]) -> None:
    backend.gate.clear()
    with pytest.raises(kind):
        interrupt(backend, kind, after=1)
    assert committed(backend) == []
    assert Catalog(backend).recover() in (1, 2)  # as many as were claimed together
    assert backend.count() == 0
    assert dict(backend.scan_records("")) == {}


def test_an_exception_ends_the_retries(backend: Moody) -> None:
    """Ctrl-C while the backend is down does not wait for it to come back."""
    backend.fails = lambda what: BackendUnavailable("down")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupt(backend, KeyboardInterrupt, after=3)
    assert time.monotonic() - began < 30  # of the 120 seconds it would go on
