"""Changes in the catalog: claimed, committed, released, and undone where a writer died."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pytest

from knnlm_store import intents, writers
from knnlm_store.catalog import Catalog
from knnlm_store.documents import Change, DocumentRecord, scan
from knnlm_store.errors import BackendUnavailable, StoreError
from knnlm_store.memory import MemoryBackend
from knnlm_store.values import Int64, Location, Spec
from tests.ingest_support import (
    a_version,
    an_intent,
    bare,
    dead_writer,
    put_documents,
    record,
    some_entries,
)


def interrupted(writer: str) -> MemoryBackend:
    """A changed document and a new one, both with entries of the version being written."""
    backend = bare([record("changed", 100), record("other", 400)])
    intents.put(backend, [an_intent("s/changed", 200, writer), an_intent("s/new", 300, writer)])
    for number in (100, 200, 300, 400):
        backend.upsert(some_entries(number, 5))
    return backend


def numbers(backend: MemoryBackend) -> set[int]:
    return {int(n) for batch in backend.scan() for n in batch.documents}


def everything(backend: MemoryBackend) -> dict[str, bytes]:
    return dict(backend.scan_records(""))


@pytest.fixture
def live() -> Iterator[str]:
    """Name of a writer of this process that is at work."""
    name = writers.new_name()
    writers.begin_work(name)
    yield name
    writers.end_work(name)


def test_what_a_dead_writer_left_is_undone() -> None:
    backend = interrupted(dead_writer())
    known = Catalog(backend)
    before = sorted(d.encode() for d in known)
    assert known.recover() == 2
    assert numbers(backend) == {100, 400}
    assert [d.encode() for d in scan(backend)] == before == sorted(d.encode() for d in known)
    after = everything(backend)
    assert set(after) == {"document/s/changed", "document/s/other"}
    assert Catalog(backend).recover() == 0
    assert everything(backend) == after


def test_what_a_live_writer_has_in_hand_is_left_alone(live: str) -> None:
    backend = interrupted(live)
    before = everything(backend)
    assert Catalog(backend).recover() == 0
    assert everything(backend) == before
    assert numbers(backend) == {100, 200, 300, 400}


def test_this_process_owns_what_it_has_at_work() -> None:
    backend = bare()
    mine = Catalog(backend)
    mine.begin_writing()
    change = Change(DocumentRecord("s", "a", {}, mine.new_version("s/a", "d", 5, 0)))
    assert mine.claim([change]) == set()
    assert Catalog(backend).recover() == 0
    mine.end_writing()
    assert Catalog(backend).recover() == 1
    assert everything(backend) == {}


def test_a_version_that_was_committed_stays() -> None:
    """Its writer died with the intent still there, before or after it removed the old entries."""
    for stale in ((), (50,)):
        backend = interrupted(dead_writer())
        backend.upsert(some_entries(50, 5))
        put_documents(backend, [record("changed", 200, stale=stale)])
        backend.delete([100])
        assert Catalog(backend).recover() == 2
        assert numbers(backend) == {200, 400} | ({50} if not stale else set())
        assert all(d.stale == () for d in scan(backend))
        assert len(everything(backend)) == 2


def test_stale_entries_of_a_live_writer_are_its_own_affair(live: str) -> None:
    backend = interrupted(live)
    stale = record("changed", 100, stale=(400,))
    put_documents(backend, [stale])
    before = everything(backend)
    assert Catalog(backend).recover() == 0
    assert everything(backend) == before
    assert 400 in numbers(backend)


def test_metadata_in_hand_takes_no_entries_with_it() -> None:
    """The intent of a writer that changed metadata alone names the version in force."""
    backend = interrupted(dead_writer())
    intents.put(backend, [replace(an_intent("s/other", 400, dead_writer()), writes=False)])
    assert Catalog(backend).recover() == 3
    assert numbers(backend) == {100, 400}


def test_a_claim_takes_over_what_the_dead_left() -> None:
    backend = interrupted(dead_writer())
    mine = Catalog(backend)
    mine.begin_writing()
    again = Change(DocumentRecord("s", "changed", {}, a_version(200)))  # the same text once more
    new = Change(DocumentRecord("s", "new", {}, a_version(500)))
    assert mine.claim([again, new]) == set()
    assert numbers(backend) == {100, 200, 400}
    backend.upsert(some_entries(500, 5))
    mine.commit([again, new])
    mine.release([again, new])
    mine.end_writing()
    assert numbers(backend) == {200, 400, 500}
    assert set(everything(backend)) == {f"document/s/{n}" for n in ("changed", "new", "other")}


# -- commits -----------------------------------------------------------------------------------


def in_hand(backend: MemoryBackend, changes: Sequence[Change]) -> Catalog:
    """A catalog that has claimed these."""
    known = Catalog(backend)
    known.begin_writing()
    assert known.claim(changes) == set()
    return known


def changes(*names_and_numbers: tuple[str, int]) -> list[Change]:
    return [Change(record(name, number)) for name, number in names_and_numbers]


def test_commit_and_settle() -> None:
    backend = bare([record("changed", 100, stale=(90,)), record("other", 400)])
    made = changes(("changed", 200), ("new", 300))
    known = in_hand(backend, made)
    for number in (90, 100, 200, 300, 400):
        backend.upsert(some_entries(number, 5))
    known.commit(made)
    known.release(made)
    known.end_writing()
    assert numbers(backend) == {200, 300, 400}
    assert sorted(d.version.number for d in known) == [200, 300, 400]
    assert [d.version.number for d in Catalog(backend)] == [200, 300, 400]
    assert all(d.stale == () for d in scan(backend))
    assert len(known) == 3
    assert len(everything(backend)) == 3


def test_a_text_that_came_back() -> None:
    """The version to commit is among those whose entries were still to go."""
    backend = bare([record("a", 100, stale=(200, 90))])
    (back,) = changes(("a", 200))
    known = in_hand(backend, [back])
    for number in (90, 100, 200):
        backend.upsert(some_entries(number, 5))
    known.commit([back])
    assert numbers(backend) == {200}
    assert next(scan(backend)).stale == ()


def test_metadata_of_a_version_that_was_replaced_meanwhile() -> None:
    backend = bare([record("a", 100)])
    stale = Catalog(backend)
    put_documents(backend, [record("a", 200, metadata={"theirs": 1})])
    change = Change(replace(next(iter(stale)), metadata={"mine": 1}), with_entries=False)
    stale.begin_writing()
    assert stale.claim([change]) == set()
    stale.commit([change])
    kept = next(scan(backend))
    assert (kept.version.number, kept.metadata) == (200, {"theirs": 1})


def test_commit_notices_that_its_entries_are_gone() -> None:
    backend = bare([record("changed", 100)])
    made = changes(("changed", 200), ("new", 300))
    known = in_hand(backend, made)
    for number in (100, 200):
        backend.upsert(some_entries(number, 5))
    before = everything(backend)
    with pytest.raises(StoreError, match="removed 5 of the 10 entries that were written") as caught:
        known.commit(made)
    assert caught.value.hint == "Run the same command again."
    assert everything(backend) == before
    assert numbers(backend) == {100, 200}


@pytest.mark.parametrize("step", ["renew", "commit"])
def test_a_writer_that_was_taken_for_dead(step: str) -> None:
    """It stops, and what it wrote since is removed by the next run."""
    backend = bare([record("a", 100)])
    backend.upsert(some_entries(100, 5))
    made = changes(("a", 200))
    asleep = in_hand(backend, made)
    intents.remove(backend, intents.scan(backend))  # as a `recover` elsewhere did
    backend.upsert(some_entries(200, 5))
    with pytest.raises(StoreError, match="took over 1 of the documents") as caught:
        asleep.renew() if step == "renew" else asleep.commit(made)
    assert caught.value.hint == "Run the same command again."
    asleep.end_writing()
    assert Catalog(backend).recover() == 1
    assert numbers(backend) == {100}
    assert [d.version.number for d in scan(backend)] == [100]


class Forgetful(MemoryBackend):
    """Makes each kind of change to records and then fails, once, as if the answer got lost."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self.lost: set[str] = {"put document"}

    def _lose(self, answer: str) -> None:
        if answer not in self.lost:
            self.lost.add(answer)
            raise BackendUnavailable(answer)

    def put_records(self, records: Mapping[str, bytes]) -> None:
        super().put_records(records)
        self._lose(f"put {min(records).partition('/')[0]}")

    def delete_records(self, names: Sequence[str]) -> None:
        super().delete_records(names)
        self._lose(f"remove {min(names).partition('/')[0]}")

    def _delete(self, documents: Int64) -> None:
        super()._delete(documents)
        self._lose("delete")


def until_answered(step: Callable[[], object]) -> int:
    """Ask again as the writer does; gives the number of tries."""
    for tries in itertools.count(1):
        with contextlib.suppress(BackendUnavailable):
            step()
            return tries
    raise AssertionError


def test_a_change_that_was_made_and_not_confirmed_is_made_again() -> None:
    backend = Forgetful.connect(Location("memory", "", "memory"))
    backend.create(Spec(4), {})
    put_documents(backend, [record("a", 100)])
    backend.lost.clear()
    for number in (100, 200):
        backend.upsert(some_entries(number, 5))
    known, made = Catalog(backend), changes(("a", 200))
    known.begin_writing()
    assert until_answered(lambda: known.claim(made)) == 2
    assert until_answered(lambda: known.commit(made)) == 3
    assert until_answered(lambda: known.release(made)) == 2
    known.end_writing()
    assert backend.lost == {"put intent", "put document", "delete", "remove intent"}
    assert numbers(backend) == {200}
    assert set(everything(backend)) == {"document/s/a"}
    assert next(scan(backend)).stale == ()


def test_ids_of_a_version_that_is_gone_are_given_again() -> None:
    backend = bare()
    known = Catalog(backend)
    first = known.new_version("s/a", "d", 30, 0)
    known.begin_writing()
    change = Change(DocumentRecord("s", "a", {}, first))
    known.claim([change])
    known.end_writing()
    assert known.recover() == 1
    assert known.get("s/a") is None
    assert known.new_version("s/a", "d", 30, 0).number == first.number
