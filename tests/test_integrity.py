"""Whether catalog and entries agree: what is found, and what is mended of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from knnlm_store import intents, writers
from knnlm_store.datastore import Datastore
from knnlm_store.documents import DocumentRecord
from knnlm_store.ingest import ingest
from knnlm_store.integrity import Finding, check, mend
from knnlm_store.models import LanguageModel
from knnlm_store.values import Entries
from tests.ingest_support import (
    a_version,
    an_intent,
    assert_whole,
    corpus,
    dead_writer,
    held,
    new_store,
    prose,
    put_documents,
    some_entries,
)

TEXTS = {name: prose(i, 40 + 20 * i) for i, name in enumerate("abc")} | {"empty": ""}


@pytest.fixture
def store(shared_model: LanguageModel) -> Datastore:
    with new_store(shared_model) as made:
        ingest(corpus(TEXTS), shared_model, made)
        return made


def records(store: Datastore) -> dict[str, DocumentRecord]:
    return {record.id: record for record in store.documents()}


def lose(store: Datastore, name: str, position: int) -> int:
    """Have one entry of a document lost; gives the number of its version."""
    record = records(store)[name]
    number = record.version.number
    entries = held(store)
    mine = entries[entries.documents == number]
    store.backend.delete([number])
    store.backend.upsert(mine[mine.positions != position])
    return number


def test_all_is_well(store: Datastore) -> None:
    report = check(store)
    assert report.findings == []
    assert report.documents == 3
    assert report.entries == sum(map(len, TEXTS.values()))


@pytest.mark.parametrize("position", [0, 7, len(TEXTS["b"]) - 1])
def test_a_document_that_lost_an_entry_is_taken_out(
    store: Datastore, shared_model: LanguageModel, position: int
) -> None:
    number = lose(store, "s/b", position)
    tokens = len(TEXTS["b"])
    report = check(store)
    assert report.findings == [Finding("damaged", "s/b", number, tokens, tokens - 1)]
    assert "s/b" in records(store)  # looking changes nothing
    mend(store, report)
    assert (report.mended, report.again) == (1, ["s/b"])
    assert_whole(store)
    assert check(store).findings == []
    assert ingest(corpus(TEXTS), shared_model, store).added == 1
    assert check(store).findings == []
    assert_whole(store)


def test_an_entry_in_the_place_of_another_is_noticed(store: Datastore) -> None:
    number = lose(store, "s/b", 3)
    entries = held(store)
    last = entries[entries.documents == number][:1]
    beyond = Entries(last.keys, last.tokens, last.documents, last.positions * 0 + len(TEXTS["b"]))
    store.backend.upsert(beyond)
    (finding,) = check(store).findings
    assert (finding.kind, finding.expected) == ("damaged", finding.found)


def test_entries_of_no_document_are_removed(store: Datastore) -> None:
    store.backend.upsert(some_entries(777, 3, store.manifest.key_dimension))
    report = check(store)
    assert report.findings == [Finding("orphan", None, 777, 0, 3)]
    mend(store, report)
    assert report.mended == 1
    assert_whole(store)


def test_what_a_killed_run_left_is_finished(store: Datastore) -> None:
    width = store.manifest.key_dimension
    intents.put(store.backend, [an_intent("s/new", 777, dead_writer())])
    store.backend.upsert(some_entries(777, 3, width))
    put_documents(store.backend, [DocumentRecord("s", "gone", {}, records(store)["s/a"].version)])
    b = records(store)["s/b"]
    put_documents(
        store.backend,
        [DocumentRecord("s", "b", {}, b.version, forgotten=True)],
    )
    store.backend.delete_records(["document/s/gone"])
    report = check(store)
    found = {(f.kind, f.document, f.found) for f in report.findings}
    assert found == {("unfinished", "s/new", 3), ("unfinished", "s/b", len(TEXTS["b"]))}
    mend(store, report)
    assert (report.mended, report.undone) == (2, ["s/new"])  # s/b was to be forgotten
    assert check(store).findings == []
    assert sorted(records(store)) == ["s/a", "s/c"]
    assert_whole(store)


def test_writers_at_work_are_left_alone(store: Datastore) -> None:
    live = writers.new_name()
    writers.begin_work(live)
    try:
        intents.put(store.backend, [an_intent("s/new", 777, live)])
        store.backend.upsert(some_entries(777, 3, store.manifest.key_dimension))
        report = check(store)
        assert report.findings == []
        mend(store, report)
        assert store.backend.count([777]) == 3
    finally:
        writers.end_work(live)


def test_what_comes_and_goes_meanwhile_is_no_finding(
    store: Datastore, shared_model: LanguageModel
) -> None:
    def changing(batches: object) -> list[Entries]:
        seen = list(batches)  # type: ignore[call-overload]
        ingest(corpus({"a": TEXTS["a"][::-1], "new": prose(7, 50)}), shared_model, store)
        return seen  # type: ignore[no-any-return]

    report = check(store, changing)
    assert report.findings == []


def test_orphans_that_found_a_document_meanwhile_stay(store: Datastore) -> None:
    store.backend.upsert(some_entries(777, 3, store.manifest.key_dimension))
    report = check(store)
    put_documents(
        store.backend, [replace(records(store)["s/a"], name="new", version=a_version(777, 3))]
    )
    mend(store, report)
    assert store.backend.count([777]) == 3
    assert check(store).findings == []


def test_what_others_are_forgetting_is_no_finding(store: Datastore) -> None:
    live = writers.new_name()
    writers.begin_work(live)
    try:
        intents.put(store.backend, [replace(an_intent("s/a", 0, live), writes=False)])
        put_documents(store.backend, [replace(records(store)["s/a"], forgotten=True)])
        assert check(store).findings == []
    finally:
        writers.end_work(live)
    (finding,) = [f for f in check(store).findings if f.number]
    assert (finding.kind, finding.document) == ("unfinished", "s/a")


def test_what_could_not_be_mended_is_not_counted(
    store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intents, "PATIENCE", 0.0)
    lose(store, "s/b", 3)
    report = check(store)
    live = writers.new_name()
    writers.begin_work(live)
    try:
        intents.put(store.backend, [an_intent("s/b", 555, live)])
        mend(store, report)
    finally:
        writers.end_work(live)
    assert (len(report.findings), report.mended, report.again) == (1, 0, [])


def test_large_batches_and_small_ones_agree(store: Datastore) -> None:
    def one_by_one(batches: object) -> list[Entries]:
        whole = Entries.concatenate(list(batches))  # type: ignore[call-overload]
        order = np.random.default_rng(0).permutation(len(whole))
        return [whole[order[i : i + 1]] for i in range(len(whole))]

    lose(store, "s/c", 5)
    assert check(store, one_by_one) == check(store)
