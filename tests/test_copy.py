"""From one datastore to another: whole, resumed, verified; the source is never changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from knnlm_store import copying, retry, verifying, writer
from knnlm_store.calibration import keep_temperature, stored_temperature
from knnlm_store.copying import copy
from knnlm_store.datastore import Datastore
from knnlm_store.errors import BackendUnavailable, StoreCorrupt
from knnlm_store.ingest import ingest
from knnlm_store.memory import MemoryBackend
from knnlm_store.models import LanguageModel
from knnlm_store.values import Entries, Int64, Location
from knnlm_store.verifying import verify
from knnlm_store_qdrant import QdrantBackend
from tests.faults_servers import EngineProcess, running
from tests.faults_support import at_calls
from tests.ingest_support import assert_same, assert_whole, corpus, held, new_store, prose, store_of

TEXTS = {f"{i:02}": prose(i, 20 + 9 * i) for i in range(14)}


@pytest.fixture
def source(language_model: LanguageModel) -> Iterator[Datastore]:
    with new_store(language_model) as store:
        ingest(corpus(TEXTS), language_model, store)
        yield store


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several documents a group, some groups of one; commits at once."""
    monkeypatch.setattr(copying, "_GROUP", 100 * 32 * 4)
    monkeypatch.setattr(writer, "_GROUP_SECONDS", 0.0)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_copies_everything(
    source: Datastore, language_model: LanguageModel, tmp_path: Path, storage: str
) -> None:
    with new_store(language_model, f"faiss:{tmp_path}/x", storage) as target:
        before = held(source)
        report = copy(source, target)
        assert (report.copied, report.skipped, report.changed) == (len(TEXTS), 0, [])
        assert report.entries == report.total == len(before)
        assert report.verified == {"entries": len(before), "sample": 8 * len(TEXTS)}
        assert_whole(target)
        copied = held(target)
        assert copied.ids.tolist() == before.ids.tolist()
        assert copied.tokens.tolist() == before.tokens.tolist()
        allowed = verifying.ROUNDING[storage] * np.abs(before.keys).max()
        np.testing.assert_allclose(copied.keys, before.keys, rtol=0, atol=allowed)
        np.testing.assert_array_equal(held(source).keys, before.keys)
        again = copy(source, target)
        assert (again.copied, again.skipped, again.entries) == (0, len(TEXTS), 0)
        assert again.verified["entries"] == len(before)


def test_back_again(source: Datastore, language_model: LanguageModel, tmp_path: Path) -> None:
    """There and back is what it was, and what is ingested then is skipped as unchanged."""
    back = new_store(language_model)
    with new_store(language_model, f"faiss:{tmp_path}/x") as target:
        copy(source, target)
        copy(target, back)
    assert_same(back, source)
    assert ingest(corpus(TEXTS), language_model, back).skipped == len(TEXTS)


def test_what_changed_is_replaced_and_the_rest_stays(
    source: Datastore, language_model: LanguageModel
) -> None:
    target = new_store(language_model)
    ingest(corpus({"03": "old text", "other": "of the target"}), language_model, target)
    keep_temperature(target)
    report = copy(source, target)
    assert report.copied == len(TEXTS)
    assert {d.name for d in target.documents()} == {*TEXTS, "other"}
    assert_whole(target)
    assert stored_temperature(target) is None  # it was of other entries
    keep_temperature(source)
    copy(source, target)
    assert stored_temperature(target) is None  # the target holds more than the source
    same = new_store(language_model)
    copy(source, same)
    assert stored_temperature(same) == stored_temperature(source)


class Mortal(MemoryBackend):
    """Dies at the n-th upsert."""

    left = 0

    def upsert(self, entries: Entries) -> None:
        self.left -= 1
        if self.left == 0:
            super().upsert(entries[: len(entries) // 2])
            raise KeyboardInterrupt
        super().upsert(entries)


@pytest.mark.usefixtures("small_groups")
def test_killed_and_resumed(
    source: Datastore, language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_BATCH", 1)
    backend = Mortal.connect(Location("memory", "", "other"))
    target = store_of(backend, language_model)
    target.location = Location("memory", "", "other")
    backend.left = 6
    with pytest.raises(KeyboardInterrupt):
        copy(source, target)
    done = sum(1 for _ in target.documents())
    assert 0 < done < len(TEXTS)
    report = copy(source, target)
    assert report.skipped == done
    assert report.copied == len(TEXTS) - done
    assert_whole(target)
    assert held(target).ids.tolist() == held(source).ids.tolist()


@pytest.mark.usefixtures("small_groups")
def test_into_a_server_that_is_killed(
    source: Datastore,
    language_model: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The copy ends with the reason; once the server is back, the same copy goes on."""
    key = "of-the-copy"
    monkeypatch.setenv("KNNLM_QDRANT_API_KEY", key)
    monkeypatch.setattr(writer, "_BATCH", 1)
    monkeypatch.setattr(retry, "GIVE_UP_AFTER", 0.3)
    with running(EngineProcess(tmp_path / "engine", key)) as server:
        uri = f"qdrant://{server.address}/law"
        with new_store(language_model, uri) as target, monkeypatch.context() as patch:
            at_calls(patch, QdrantBackend, "_upsert", {6: server.kill})
            with pytest.raises(BackendUnavailable):
                copy(source, target)
        server.start()
        with Datastore.open(uri) as target:
            done = sum(1 for _ in target.documents())
            assert 0 < done < len(TEXTS)
            report = copy(source, target)
            assert (report.skipped, report.copied) == (done, len(TEXTS) - done)
            assert_whole(target)
            assert_same(target, source)


@pytest.mark.usefixtures("small_groups")
def test_stopped(source: Datastore, language_model: LanguageModel) -> None:
    target, asked = new_store(language_model), iter([False, False, True])
    report = copy(source, target, stop=lambda: next(asked))
    assert report.interrupted
    assert report.verified == {}
    assert 0 < report.copied < len(TEXTS)
    assert_whole(target)
    assert copy(source, target).skipped == report.copied


@pytest.mark.usefixtures("small_groups")
def test_a_document_that_changes_meanwhile_is_named(
    source: Datastore, language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entries are gone when its turn comes; the others are copied, it is not half there."""
    gone = next(d for d in source.documents() if d.name == "01")
    kept = list(source.documents())
    monkeypatch.setattr(source, "documents", lambda: iter(kept))
    source.backend.delete([gone.version.number])
    target = new_store(language_model)
    report = copy(source, target)
    assert report.changed == [gone.id]
    assert_whole(target)
    assert {d.name for d in target.documents()} == {*TEXTS} - {"01"}


class Wrong(MemoryBackend):
    """Loses or spoils what it is told to."""

    token_off, key_off = 0, 0.0

    def upsert(self, entries: Entries) -> None:
        keys = entries.keys * np.float32(1 + self.key_off)
        super().upsert(replace(entries, keys=keys, tokens=entries.tokens + self.token_off))


@pytest.mark.parametrize("spoil", [{"key_off": 0.01}, {"token_off": 1}], ids=["key", "token"])
def test_a_copy_that_differs_is_noticed(
    source: Datastore, language_model: LanguageModel, spoil: Mapping[str, float]
) -> None:
    backend = Wrong.connect(Location("memory", "", "other"))
    target = store_of(backend, language_model)
    target.location = Location("memory", "", "other")
    for name, value in spoil.items():
        setattr(backend, name, value)
    with pytest.raises(StoreCorrupt, match="differ between") as caught:
        copy(source, target)
    assert caught.value.hint == "Remove the copy and copy again: knnlm-store rm memory:"


def test_a_large_document_that_changes_meanwhile_is_left_undone(
    source: Datastore, language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is streamed, and found short at its end; what was written of it goes again."""
    monkeypatch.setattr(copying, "_GROUP", 1)
    victim = next(d for d in source.documents() if d.name == "11")
    kept, number = list(source.documents()), victim.version.number
    left = held(source)[: 10**6]
    half = left[(left.documents == number) & (left.positions < 20)]
    monkeypatch.setattr(source, "documents", lambda: iter(kept))
    source.backend.delete([number])
    source.backend.upsert(half)
    target = new_store(language_model)
    report = copy(source, target)
    assert report.changed == [victim.id]
    assert report.copied == len(TEXTS) - 1
    assert target.backend.count([number]) == 0
    assert_whole(target)
    assert {d.name for d in target.documents()} == {*TEXTS} - {"11"}


def test_the_sample_reaches_the_end_of_a_document(language_model: LanguageModel) -> None:
    """Tokens that are wrong far behind the first ones are noticed."""
    source, target = new_store(language_model), new_store(language_model)
    target.location = Location("memory", "", "other")
    ingest(corpus({"long": prose(3, 1500)}), language_model, source)
    copy(source, target)
    entries = held(target)
    tail = entries[entries.positions >= 300]
    target.backend.upsert(replace(tail, tokens=tail.tokens + 1))
    with pytest.raises(StoreCorrupt, match="Entries of s/long differ"):
        copy(source, target)


def test_empty_documents_are_copied(language_model: LanguageModel) -> None:
    """A document that became empty has a record and no entries; groups of them end."""
    source, target = new_store(language_model), new_store(language_model)
    texts = {f"{i}": "text" for i in range(5)}
    ingest(corpus(texts), language_model, source)
    ingest(corpus(dict.fromkeys(texts, "")), language_model, source)
    assert copy(source, target).copied == 5
    assert copy(source, target).skipped == 5


def test_a_copy_that_lost_entries_is_noticed(
    source: Datastore, language_model: LanguageModel
) -> None:
    target = new_store(language_model)
    target.location = Location("memory", "", "other")
    copy(source, target)
    documents = list(source.documents())
    lost: Int64 = np.array([documents[3].version.number])
    target.backend.delete(lost)
    missing = documents[3].version.tokens
    total = len(held(source))
    with pytest.raises(StoreCorrupt, match=f"holds {total - missing:,} of {total:,} entries"):
        verify(source, target, documents)
