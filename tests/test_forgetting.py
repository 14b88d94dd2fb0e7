"""Documents are forgotten: chosen, removed at whatever instant a run dies, and proved gone."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from knnlm_store import history, intents, writers
from knnlm_store.backend import Compactable
from knnlm_store.calibrated import RECORD
from knnlm_store.catalog import Catalog
from knnlm_store.datastore import Datastore
from knnlm_store.documents import DocumentRecord, scan, scan_all
from knnlm_store.errors import StoreError, UsageError
from knnlm_store.forgetting import choose, forget, remains
from knnlm_store.ingest import ingest
from knnlm_store.memory import MemoryBackend
from knnlm_store.models import LanguageModel
from knnlm_store.values import Int64, Location, Spec
from tests.changing import CHANGES, Killed, fragile
from tests.ingest_support import (
    a_version,
    an_intent,
    assert_same,
    assert_whole,
    corpus,
    dead_writer,
    document,
    held,
    new_store,
    prose,
    put_documents,
    some_entries,
)

PLACE = Location("memory", "", "memory")
TEXTS = {name: prose(i, 40 + 20 * i) for i, name in enumerate("abcd")}


@pytest.fixture
def store(shared_model: LanguageModel) -> Datastore:
    with new_store(shared_model) as made:
        ingest(corpus(TEXTS), shared_model, made)
        return made


def ids(store: Datastore) -> list[str]:
    return sorted(document.id for document in store.documents())


def test_a_document_goes_and_the_others_stay(store: Datastore, shared_model: LanguageModel) -> None:
    report = forget(store, ["s/b", "s/d"], verify=True)
    assert (report.documents, report.refused) == (["s/b", "s/d"], [])
    assert report.entries == len(TEXTS["b"]) + len(TEXTS["d"])
    assert report.proof is not None
    assert report.proof.holds
    assert report.proof.keys == 16
    assert ids(store) == ["s/a", "s/c"]
    assert_whole(store)
    with new_store(shared_model) as alone:
        ingest(corpus({name: TEXTS[name] for name in "ac"}), shared_model, alone)
        assert_same(store, alone)


def test_the_same_text_can_come_back(store: Datastore, shared_model: LanguageModel) -> None:
    before = held(store)
    forget(store, ["s/b"])
    ingest(corpus(TEXTS), shared_model, store)
    np.testing.assert_array_equal(held(store).ids, before.ids)
    assert_whole(store)


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_instant_the_next_run_finishes(after: bool) -> None:
    """Dead before the mark it is all there; from the mark on it is gone for every reader."""
    for fatal in range(20):
        backend = MemoryBackend.connect(PLACE)
        backend.create(Spec(4), {})
        records = [
            DocumentRecord("s", name, {}, a_version(100 * (i + 1))) for i, name in enumerate("ab")
        ]
        put_documents(backend, records)
        for record in records:
            backend.upsert(some_entries(record.version.number, 5))
        catalog = Catalog(backend)
        died = fragile(backend, fatal, after=after)
        with suppress(Killed):
            catalog.forget(["s/a"])
        if not died():
            assert fatal > 3
            break
        for name in CHANGES:
            delattr(backend, name)
        gone = [document.id for document in scan(backend)] == ["s/b"]
        assert Catalog(backend).recover() == 1 or not list(intents.scan(backend))
        assert [document.id for document in scan_all(backend)] == (
            ["s/b"] if gone else ["s/a", "s/b"]
        )
        assert backend.count() == (5 if gone else 10)
        assert list(intents.scan(backend)) == []
    else:
        raise AssertionError("never came to its end")


def test_half_written_documents_can_be_named(store: Datastore) -> None:
    intents.put(store.backend, [an_intent("s/half", 777, dead_writer())])
    width = store.manifest.key_dimension
    store.backend.upsert(some_entries(777, 3, width))
    report = forget(store, choose(store, ["s/half"]), verify=True)
    assert report.documents == ["s/half"]
    assert report.proof is not None
    assert report.proof.holds
    assert report.proof.keys == 3
    assert store.backend.count([777]) == 0
    assert ids(store) == ["s/a", "s/b", "s/c", "s/d"]
    assert_whole(store)


def test_what_another_writer_has_in_hand_is_refused(store: Datastore) -> None:
    live = writers.new_name()
    writers.begin_work(live)
    try:
        intents.put(store.backend, [an_intent("s/b", 777, live)])
        report = forget(store, ["s/a", "s/b"], patience=0.0)
    finally:
        writers.end_work(live)
    assert (report.documents, report.refused) == (["s/a"], ["s/b"])
    assert ids(store) == ["s/b", "s/c", "s/d"]


def test_chosen_by_source_and_metadata(shared_model: LanguageModel) -> None:
    with new_store(shared_model) as store:
        texts = [
            document("a", TEXTS["a"], language="en", year=1999),
            document("b", TEXTS["b"], language="de"),
        ]
        ingest(texts, shared_model, store)
        assert choose(store, where={"source": "s"}) == ["s/a", "s/b"]
        assert choose(store, where={"language": "en", "year": "1999"}) == ["s/a"]
        with pytest.raises(StoreError, match=r"No document in .* has language=fr, source=s"):
            choose(store, where={"language": "fr", "source": "s"})


def test_what_cannot_be_chosen(store: Datastore) -> None:
    before = held(store)
    with pytest.raises(StoreError, match=r"There is no document 's/aa' in memory:\.") as error:
        choose(store, ["s/a", "s/aa"])
    assert error.value.hint.startswith("Did you mean s/a? See what there is: ")
    for arguments in ({}, {"ids": ["s/a"], "where": {"source": "s"}}):
        with pytest.raises(UsageError, match="not both"):
            choose(store, **arguments)  # type: ignore[arg-type]
    np.testing.assert_array_equal(held(store).ids, before.ids)


class Keeping(MemoryBackend):
    """Deletes nothing that it is asked to."""

    def _delete(self, documents: Int64) -> None:
        pass


def test_the_proof_fails_where_something_is_left(shared_model: LanguageModel) -> None:
    backend = Keeping.connect(PLACE)
    manifest = shared_model.manifest()
    backend.create(Spec(manifest.dimension), manifest.records())
    store = Datastore(PLACE, backend, manifest)
    ingest(corpus(TEXTS), shared_model, store)
    proof = forget(store, ["s/a"], verify=True).proof
    assert proof is not None
    assert not proof.holds
    assert proof.by_id == proof.by_filter == len(TEXTS["a"])
    assert proof.by_search > proof.keys
    assert proof.records == 0


def test_the_proof_looks_for_what_killed_runs_left(shared_model: LanguageModel) -> None:
    backend = Keeping.connect(PLACE)
    manifest = shared_model.manifest()
    backend.create(Spec(manifest.dimension), manifest.records())
    store = Datastore(PLACE, backend, manifest)
    ingest(corpus(TEXTS), shared_model, store)
    for number in (555, 777):
        backend.upsert(some_entries(number, 3, manifest.dimension))
    record = next(d for d in store.documents() if d.id == "s/a")
    put_documents(backend, [replace(record, stale=(555,))])
    intents.put(backend, [an_intent("s/half", 777, dead_writer())])
    for name, left in (("s/half", 3), ("s/a", 3 + len(TEXTS["a"]))):
        proof = forget(store, [name], verify=True).proof
        assert proof is not None
        assert (proof.by_id, proof.by_filter) == (left, left)


def test_a_forgetting_that_was_killed_is_taken_up(store: Datastore) -> None:
    """The same command finishes it, by the source as by the id."""
    whole: tuple[dict[str, Any], ...] = (
        {"where": {"source": "s"}},
        {"ids": ["s/a", "s/b", "s/c", "s/d"]},
    )
    for again in whole:
        for record in store.documents():
            put_documents(store.backend, [replace(record, forgotten=True)])
        assert store.backend.count() > 0
        assert forget(store, choose(store, **again)).documents == ["s/a", "s/b", "s/c", "s/d"]
        assert store.backend.count() == 0
        for name in "abcd":
            put_documents(store.backend, [DocumentRecord("s", name, {}, a_version(ord(name) * 99))])
            store.backend.upsert(some_entries(ord(name) * 99, 5, store.manifest.key_dimension))


def test_only_versions_that_are_meant_go(store: Datastore, shared_model: LanguageModel) -> None:
    versions = {d.id: d.version.number for d in store.documents() if d.name in "ab"}
    ingest([document("a", prose(9, 30))], shared_model, store)
    report = forget(store, versions, versions=versions)
    assert (report.documents, report.refused) == (["s/b"], ["s/a"])
    assert ids(store) == ["s/a", "s/c", "s/d"]
    assert_whole(store)


def test_who_was_taken_for_dead_touches_no_record(
    store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease runs out in a slow delete, and another writer commits meanwhile."""
    catalog, delete = Catalog(store.backend), store.backend.delete

    def slow(numbers: Any) -> None:
        delete(numbers)
        intents.remove(store.backend, list(intents.scan(store.backend)))
        put_documents(store.backend, [DocumentRecord("s", "a", {}, a_version(4242))])

    monkeypatch.setattr(store.backend, "delete", slow)
    with pytest.raises(StoreError, match="took over"):
        catalog.forget(["s/a"])
    found = {d.id: d.version.number for d in store.documents()}
    assert found["s/a"] == 4242


def test_what_may_remain_is_said(store: Datastore) -> None:
    told = " ".join(remains(store))
    assert "Backups" in told
    assert ("compact" in told) == isinstance(store.backend, Compactable)
    assert "calibration" not in told
    store.backend.put_records({RECORD: b"{}"})
    assert "knnlm-store tune memory: TEXT" in " ".join(remains(store))


def test_runs_are_on_record_without_names(store: Datastore, shared_model: LanguageModel) -> None:
    forget(store, ["s/b"])
    ingest(corpus(TEXTS), shared_model, store)
    ingest(corpus(TEXTS), shared_model, store)  # changes nothing
    runs = history.runs(store.backend)
    tokens = {name: len(text) for name, text in TEXTS.items()}
    assert [(run.what, dict(run.counts)) for run in runs] == [
        ("ingest", {"added": 4, "entries": sum(tokens.values())}),
        ("forget", {"forgotten": 1, "entries": tokens["b"]}),
        ("ingest", {"added": 1, "entries": tokens["b"]}),
    ]
    assert [run.at for run in runs] == sorted(run.at for run in runs)
    for _, value in store.backend.scan_records(history.PREFIX):
        assert b"s/" not in value


def test_old_runs_go(store: Datastore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", 3)
    for n in range(1, 6):
        history.note(store.backend, "ingest", 0.0, entries=n)
    assert [run.counts["entries"] for run in history.runs(store.backend)] == [3, 4, 5]


def test_versions_of_a_document_are_remembered(
    store: Datastore, shared_model: LanguageModel
) -> None:
    ingest([document("a", prose(9, 30))], shared_model, store)
    ingest([document("a", prose(8, 35))], shared_model, store)
    found = {record.id: record for record in store.documents()}
    assert [each.tokens for each in found["s/a"].earlier] == [len(TEXTS["a"]), 30]
    assert found["s/a"].earlier[0].at <= found["s/a"].earlier[1].at <= found["s/a"].version.at
    assert found["s/b"].earlier == ()
